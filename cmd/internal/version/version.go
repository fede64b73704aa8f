// Package version says which Kerf this is.
package version

// Version is set by the linker (see Makefile); "unknown" in a plain go build.
var Version = "unknown"
