// Package cnisuite holds a CNI plugin that moves VFs to what goes wrong in practice: attributes that a driver refuses, deaths in the
// middle, lost records, namespaces that end first. It is black-box: any plugin, by its program, a configuration and its answers, in
// the lab's machine with real igb VFs. TestLabB1 to B8 are the failures of sriov-cni and host-device by which the suite began.
//
// What is asked for is set by the environment:
//
//	KERF_CNI_PLUGIN      the plugin's program
//	KERF_CNI_CONFIG      its configuration; DEVICE stands for a VF's PCI address
//	KERF_CNI_STATE       where it keeps records: patterns of files, with commas between
//	KERF_CNI_ATTRIBUTES  anything, where it knows sriov-cni's fields
//
// A VF is clean when its link is in the host's namespace with the name, MTU and address that it had, and its PF says of it what it
// said before.
package cnisuite
