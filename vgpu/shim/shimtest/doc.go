// Package shimtest holds the tests of the shim. They compile the C drivers of ../test and run them as tenants: in
// a private mount namespace where /run/kerf is what `kerf run` makes, over the simulated driver or NVIDIA's own.
//
// kerfd is played by a small stand-in that makes the pages and answers the socket, so that what is tested is the
// shim alone. Where a test needs what a machine lacks (root or user namespaces, the vendor's packages), it skips
// and says so.
package shimtest
