package sysfs

import (
	"bytes"
	"encoding/binary"
	"os"
	"path/filepath"

	"github.com/kerf-gpu/kerf/internal/node"
)

// A Data Direct function is a second PCI function of a ConnectX-8, below the
// GPU's root complex where the NIC's own is below the CPU's.
const (
	vendorMellanox   = 0x15b3
	deviceDataDirect = 0x2100
)

// dataDirect gives each NIC its Data Direct function. The two carry the same
// identifier in their vital product data, which only root can read.
func (h Host) dataDirect(nics []node.NIC) error {
	found, err := h.functions(anyClass) // firmware versions differ in which class they give it
	if err != nil {
		return err
	}
	for _, f := range found {
		if !isDataDirect(f.dir) {
			continue
		}
		id := vpdIdentity(f.dir)
		for i := range nics {
			n := &nics[i]
			dir, err := h.device(n.PCI)
			if err == nil && id != "" && n.Vendor == vendorMellanox && n.PCI != f.at && vpdIdentity(dir) == id {
				p := place(f.dir)
				n.DataDirect = &p
			}
		}
	}
	return nil
}

func isDataDirect(dir string) bool {
	return number(dir, "vendor") == vendorMellanox && number(dir, "device") == deviceDataDirect
}

// vpdIdentity is V3, by which the vendor's own tools match, else VU, by which
// the kernel does.
func vpdIdentity(dir string) string {
	vpd, err := os.ReadFile(filepath.Join(dir, "vpd"))
	if err != nil {
		return ""
	}
	fields := parseVPD(vpd)
	if v3 := fields["V3"]; v3 != "" {
		return "V3 " + v3
	}
	if vu := fields["VU"]; vu != "" {
		return "VU " + vu
	}
	return ""
}

// Resource tags of vital product data, by the PCI specification.
const (
	vpdLarge    = 0x80
	vpdReadOnly = 0x90
	vpdEnd      = 0x78
)

// parseVPD is the keywords of the read-only part. What is cut off is left out.
func parseVPD(vpd []byte) map[string]string {
	fields := map[string]string{}
	for len(vpd) > 0 && vpd[0]&^7 != vpdEnd {
		tag, size, header := vpd[0], int(vpd[0]&7), 1
		if tag&vpdLarge != 0 {
			if len(vpd) < 3 {
				break
			}
			size, header = int(binary.LittleEndian.Uint16(vpd[1:])), 3
		}
		if header+size > len(vpd) {
			break
		}
		if tag == vpdReadOnly {
			vpdFields(fields, vpd[header:header+size])
		}
		vpd = vpd[header+size:]
	}
	return fields
}

func vpdFields(into map[string]string, b []byte) {
	for len(b) >= 3 && 3+int(b[2]) <= len(b) {
		into[string(b[:2])] = string(bytes.TrimRight(b[3:3+int(b[2])], " \x00"))
		b = b[3+int(b[2]):]
	}
}
