package bpf

// Kind is what an event is about; the values are the program's.
type Kind uint32

// The kinds.
const (
	OOM    Kind = 1 + iota // the kernel killed a process for lack of memory
	Crash                  // a watched process ended by a signal for its own fault
	Memory                 // a memory controller reported an error
	AER                    // a PCIe device reported an error
	Block                  // a disk failed a request
)

// probe is one row of the table.
type probe struct {
	name    string
	kind    Kind
	program string
	points  []string // tracepoints of its kind; the first that the kernel has is taken
	fields  []field
	btf     bool // it reads structures of the kernel that are in no tracepoint
	tells   string
}

// field is where a program finds something in a tracepoint.
type field struct {
	variable string   // constant of the program
	names    []string // of the field; kernels differ
	size     int      // that the program reads
}

// table is every probe.
var table = []probe{
	{name: "oom", kind: OOM, program: "oom", points: []string{"oom/mark_victim"}, tells: "processes that were killed for lack of memory",
		fields: []field{{"oom_pid", []string{"pid"}, 4}}},
	{name: "crash", kind: Crash, program: "crash", points: []string{"sched/sched_process_exit"}, btf: true, tells: "GPU processes that end by a crash"},
	{name: "memory", kind: Memory, program: "memory", points: []string{"ras/mc_event"}, tells: "errors of the machine's memory",
		fields: []field{{"memory_type", []string{"error_type"}, 4}, {"memory_count", []string{"error_count"}, 2},
			{"memory_controller", []string{"mc_index"}, 1}, {"memory_label", []string{"label"}, 4}}},
	{name: "pcie", kind: AER, program: "aer", points: []string{"ras/aer_event"}, tells: "errors of PCIe devices",
		fields: []field{{"aer_device", []string{"dev_name"}, 4}, {"aer_status", []string{"status"}, 4}, {"aer_severity", []string{"severity"}, 1}}},
	// The first exists from Linux 5.18 on; the second runs for every request.
	{name: "disk", kind: Block, program: "block", points: []string{"block/block_rq_error", "block/block_rq_complete"}, tells: "requests that disks failed",
		fields: []field{{"block_dev", []string{"dev"}, 4}, {"block_error", []string{"error", "errors"}, 4}}},
}

// Names are those of all probes.
func Names() (names []string) {
	for _, p := range table {
		names = append(names, p.name)
	}
	return names
}
