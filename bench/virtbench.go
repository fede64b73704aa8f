package bench

// VirtMetric is a metric of GPU-Virt-Bench, which other projects publish their numbers in, and where Kerf measures the
// same. That suite's numbers cannot be taken over: its native runs pass for isolated ones, its limits were not always set,
// and utilization is NVML's. So each is measured anew, against the engine's own log and a baseline in the same run.
type VirtMetric struct {
	ID       string `json:"id"`
	Name     string `json:"name"`
	Unit     string `json:"unit"`               // that suite's; ours is the row's
	Scenario string `json:"scenario,omitempty"` // of ours, and Row in it; empty: not measured, see Note
	Row      string `json:"row,omitempty"`
	Note     string `json:"note"` // how ours differs, or why it is not measured here
}

// Why a metric cannot be measured on a simulated card, for several at a time.
const (
	noArithmetic = "not measurable here: the simulated engine keeps time and does no arithmetic; a real card's figure is the program's own, since Kerf is not on the path of a running kernel"
	noBandwidth  = "not measurable here: the simulated card has no memory bus to saturate, and under leases one tenant runs at a time"
	noCache      = "not measurable here: the simulated card has no L2 cache"
	noCopies     = "not measurable here: the simulated card copies at its profile's figures; on a real card swap-probe measures pinned copies each way"
	noCollective = "not measurable here: no NCCL, and a copy between simulated cards takes what the profile says"
	noStreams    = "not measurable here: the simulated engine runs one kernel at a time, whatever the stream"
	noFragments  = "not measurable here: the simulated card's memory has no addresses that could fragment, and a real one maps pages"
)

// VirtBench is all 56 of them, in that suite's order.
var VirtBench = []VirtMetric{
	{"OH-001", "kernel launch latency", "µs", "overhead", "OH-001", "added time of the call, not the sum of call and kernel"},
	{"OH-002", "cuMemAlloc latency", "µs", "overhead", "OH-002", "2 MiB"},
	{"OH-003", "cuMemFree latency", "µs", "overhead", "OH-003", "2 MiB"},
	{"OH-004", "context creation overhead", "µs", "overhead", "OH-004", "with its end"},
	{"OH-005", "API interception (dlsym hook)", "ns", "overhead", "OH-005", "cuGetProcAddress; a linked call is in OH-001"},
	{"OH-006", "shared-region lock contention", "µs", "overhead", "KF-013", "there is no lock; 64 processes attach at once, where others contend for theirs"},
	{"OH-007", "memory tracking per alloc", "ns", "overhead", "OH-007", "added to alloc + free of 2 MiB"},
	{"OH-008", "rate limiter check", "ns", "overhead", "OH-001", "the gate is in every launch, and leases are on"},
	{"OH-009", "NVML polling CPU", "%", "neighbour", "KF-530", "all that kerfd does, beside two launch floods"},
	{"OH-010", "total throughput degradation", "%", "shares", "KF-160", "the engine's work, one alone in a slice against native"},

	{"IS-001", "memory limit accuracy", "%", "memory", "KF-400", "in bytes, by class: KF-400 to KF-409; by the way to the call: KF-420 to KF-425; over the limit: KF-410"},
	{"IS-002", "memory limit enforcement time", "µs", "memory", "IS-002", "time until cuMemAlloc says no"},
	{"IS-003", "SM utilisation accuracy", "%", "shares", "KF-124", "share of the engine's time, 70 to 30; the other cases beside it"},
	{"IS-004", "SM limit response time", "ms", "priority", "KF-610", "from kerf set until the GPU is divided anew"},
	{"IS-005", "cross-tenant memory isolation", "bool", "crash", "KF-704", "each region is read back and compared while others die"},
	{"IS-006", "cross-tenant compute isolation", "%", "neighbour", "KF-501", "GPU time lacking of what is due, beside a launch flood"},
	{"IS-007", "QoS consistency", "CV", "shares", "KF-107", "no coefficient but the error over any second, p95 and p99, 8 tenants"},
	{"IS-008", "fairness (Jain)", "0–1", "shares", "KF-147", "8 equal tenants; as 100 × (1 - Jain)"},
	{"IS-009", "noisy neighbour impact", "%", "neighbour", "KF-511", "beyond what the neighbour is due, beside a memory hog"},
	{"IS-010", "fault isolation", "bool", "crash", "KF-700", "for how long the others stand still when one is killed"},

	{"LLM-001", "attention kernel throughput", "TFLOPS", "", "", noArithmetic},
	{"LLM-002", "KV-cache allocation speed", "alloc/s", "overhead", "KF-003", "time of a block from a pool and back, native beside it"},
	{"LLM-003", "batch size scaling", "ratio", "", "", noArithmetic},
	{"LLM-004", "token generation latency", "ms", "neighbour", "KF-500", "a kernel of 100 µs in place of a token, beside a launch flood"},
	{"LLM-005", "memory-pool overhead", "%", "overhead", "KF-003", "added to alloc + free of 2 MiB of a pool's"},
	{"LLM-006", "multi-stream performance", "%", "", "", noStreams},
	{"LLM-007", "large tensor allocation", "ms", "switch", "KF-802", "96 GiB in pieces of 64 MiB, with the process' start"},
	{"LLM-008", "mixed-precision ratio", "ratio", "", "", noArithmetic},
	{"LLM-009", "dynamic batching variance", "ratio", "", "", noArithmetic},
	{"LLM-010", "multi-GPU scaling", "factor", "", "", noArithmetic},

	{"BW-001", "bandwidth under contention", "%", "", "", noBandwidth},
	{"BW-002", "bandwidth fairness", "ratio", "", "", noBandwidth},
	{"BW-003", "bus saturation point", "ratio", "", "", noBandwidth},
	{"BW-004", "bandwidth interference", "%", "", "", noBandwidth},

	{"CACHE-001", "L2 hit rate", "%", "", "", noCache},
	{"CACHE-002", "eviction by others", "%", "", "", noCache},
	{"CACHE-003", "working-set collision", "%", "", "", noCache},
	{"CACHE-004", "contention latency", "%", "", "", noCache},

	{"PCIE-001", "H2D bandwidth", "GB/s", "", "", noCopies},
	{"PCIE-002", "D2H bandwidth", "GB/s", "", "", noCopies},
	{"PCIE-003", "PCIe contention drop", "%", "", "", noCopies},
	{"PCIE-004", "pinned/pageable ratio", "ratio", "", "", noCopies},

	{"NCCL-001", "allreduce latency", "µs", "", "", noCollective},
	{"NCCL-002", "allgather bandwidth", "GB/s", "", "", noCollective},
	{"NCCL-003", "P2P bandwidth", "GB/s", "", "", noCollective},
	{"NCCL-004", "broadcast bandwidth", "GB/s", "", "", noCollective},

	{"SCHED-001", "context switch latency", "µs", "shares", "KF-161", "as the engine's work that is lost to turns, two busy tenants against one"},
	{"SCHED-002", "minimal-kernel launch overhead", "µs", "overhead", "OH-001", "that kernel is minimal"},
	{"SCHED-003", "stream concurrency efficiency", "%", "", "", noStreams},
	{"SCHED-004", "pre-emption latency", "ms", "priority", "KF-603", "until a higher class has the GPU, beside kernels of 5 ms"},

	{"FRAG-001", "fragmentation index", "%", "", "", noFragments},
	{"FRAG-002", "alloc latency degradation", "ratio", "", "", noFragments},
	{"FRAG-003", "compaction efficiency", "%", "", "", noFragments},

	{"ERR-001", "error detection latency", "µs", "memory", "IS-002", "of the error that sharing adds: out of memory"},
	{"ERR-002", "error recovery time", "µs", "crash", "KF-703", "until a dead tenant's memory can be granted again"},
	{"ERR-003", "graceful degradation", "%", "neighbour", "KF-512", "GPU time lost beside a neighbour that is refused memory again and again"},
}
