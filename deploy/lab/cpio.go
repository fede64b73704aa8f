package main

import (
	"fmt"
	"io"
	"io/fs"
)

// cpio writes the kernel's "newc" format (Documentation/driver-api/early-userspace/buffer-format.rst).
type cpio struct {
	w     io.Writer
	inode int
	size  int64
	err   error
}

// node is an entry of the archive.
type node struct {
	name         string // without a leading slash
	mode         uint32 // with the type's bits, as stat has them
	data         []byte
	major, minor int // of a device
}

const (
	typeDir     = 0o040000
	typeFile    = 0o100000
	typeLink    = 0o120000
	typeChar    = 0o020000
	cpioTrailer = "TRAILER!!!"
)

func (c *cpio) add(n node) {
	c.inode++
	links := 1
	if n.mode&0o170000 == typeDir {
		links = 2
	}
	c.write(fmt.Appendf(nil, "070701%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%08x%s\x00",
		c.inode, n.mode, 0, 0, links, 0, len(n.data), 0, 0, n.major, n.minor, len(n.name)+1, 0, n.name))
	c.pad()
	c.write(n.data)
	c.pad()
}

// close ends the archive; the first error of any write comes here.
func (c *cpio) close() error {
	c.add(node{name: cpioTrailer})
	return c.err
}

func (c *cpio) pad() { c.write(make([]byte, -c.size&3)) }

func (c *cpio) write(data []byte) {
	if c.err != nil || len(data) == 0 {
		return
	}
	n, err := c.w.Write(data)
	c.size += int64(n)
	c.err = err
}

// fileMode is the archive's mode for a regular file.
func fileMode(perm fs.FileMode) uint32 { return typeFile | uint32(perm.Perm()) }
