package main

// sysSetns is the number of setns, which package syscall lacks on amd64.
const sysSetns = 308
