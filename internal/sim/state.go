package sim

// The device files of a simulated node, as driver/state.h lays them out. That
// header explains every field; state_test.go compiles it and compares sizes
// and offsets. A field's name in C is this one in snake case.

const (
	ctlMagic     = 0x4c544353
	gpuMagic     = 0x55504753
	stateVersion = 3

	maxGPUs          = 16
	maxProcs         = 512
	maxEvents        = 64
	maxRuns          = 1024
	maxNVLinks       = 18
	maxMIGProfiles   = 16
	maxMIGInstances  = 8
	maxMIGPlacements = 8
	maxProductName   = 64 - 1 - len(simulatedMark)

	slotLockBase = 0x40000000

	flagZeroCost = 0x1

	// Capabilities, as SIM_CAP_* count them.
	capConfig  = 1
	capMonitor = 2
	capsPerGI  = 9
	capsPerGPU = 15 * capsPerGI

	linkGPU    = 0
	linkSwitch = 1

	faultLost = 0x1
	faultHang = 0x2
)

type simLock struct {
	Mutex [40]uint8
	Ready uint32
	Pad   [20]uint8
}

type simProc struct {
	Pid        int32
	Generation uint32
	Started    uint64
	Comm       [16]byte
	Pad        [32]uint8
}

type simCtl struct {
	Magic, Version uint32
	Size           uint32
	Flags          uint32
	GpuCount       uint32
	CudaVersion    uint32
	DriverVersion  [32]byte
	NvmlVersion    [32]byte
	EventFutex     uint32
	Pad0           [36]uint8
	Lock           simLock
	Proc           [maxProcs]simProc
}

type simNvlink struct {
	Active, Version                         uint8
	RemoteType                              uint8
	RemoteLink                              uint8
	RemoteDomain                            uint32
	RemoteBus, RemoteDevice, RemoteFunction uint8
	Pad                                     [5]uint8
}

type simMigProfile struct {
	Name                                [16]byte
	Memory                              uint64
	Id                                  uint32
	Slot                                uint32
	Sms, Slices, CopyEngines, Max, Size uint32
	Placements                          uint32
	Pad                                 [8]uint8
}

type simMigInstance struct {
	Uuid    [16]byte
	Used    uint32
	Profile uint32
	Start   uint32
	Gi, Ci  uint32
	Compute uint32
	Pad     [8]uint8
}

type simFacts struct {
	Uuid                                         [16]byte
	Name                                         [64]byte
	Serial                                       [32]byte
	Vbios                                        [32]byte
	BoardPart                                    [32]byte
	Brand                                        [16]byte
	Architecture                                 [16]byte
	Minor                                        uint32
	CcMajor, CcMinor                             uint32
	SmCount                                      uint32
	MemoryTotal                                  uint64
	MemoryReserved                               uint64
	ContextBytes                                 uint64
	Bar1Total                                    uint64
	BusWidth                                     uint32
	EccCapable                                   uint32
	PowerLimitMw, PowerMinMw, PowerMaxMw         uint32
	SmClockMhz, MemoryClockMhz, VideoClockMhz    uint32
	PciDomain, PciBus, PciDevice, PciFunction    uint32
	PciId                                        uint32
	PciSubsystemId                               uint32
	NumaNode                                     int32
	PcieGenMax, PcieWidthMax, PcieGen, PcieWidth uint32
	Pad0                                         uint32
	BwH2d, BwD2h, BwD2d, BwP2p                   uint64
	TimesliceNs                                  uint64
	LaunchNs                                     uint64
	NvlinkCount                                  uint32
	MigCapable                                   uint32
	P2pMask                                      uint64
	Nvlink                                       [maxNVLinks]simNvlink
	MigProfileCount, Pad1                        uint32
	MigProfile                                   [maxMIGProfiles]simMigProfile
	Reserved                                     [256]uint8
}

type simUse struct {
	Used                          uint64
	Context                       uint64
	Managed                       uint64
	Contexts                      uint32
	Generation                    uint32
	BusyComputeNs, BusyH2dNs      uint64
	BusyD2hNs                     uint64
	Kernels, Copies, LaunchErrors uint64
	Allocs, Frees, Refused        uint64
	Mig, Mps                      uint32
	MpsLimit                      uint64
	MpsPercent                    uint32
	Pad                           [4]uint8
}

type simEngine struct {
	Lock     simLock
	Owner    uint32
	Grant    uint32
	Cursor   uint64
	SliceEnd uint64
	BusyNs   uint64
	Want     [maxProcs / 64]uint64
	Since    uint64
	Pad      [24]uint8
}

type simCopyEngine struct {
	Cursor, BusyNs, Bytes uint64
	Pad                   [40]uint8
}

type simEvent struct {
	Seq     uint64
	TimeNs  uint64
	Xid     uint32
	Pid     int32
	Type    uint64
	Message [32]byte
}

type simRun struct {
	Seq        uint64
	Start, End uint64
	Slot, Rate uint32
}

type simHealth struct {
	Faults                                                 uint32
	RecoveryAction                                         uint32
	EccMode, EccPending                                    uint32
	EccVolatileCorrected, EccVolatileUncorrected           uint64
	EccAggregateCorrected, EccAggregateUncorrected         uint64
	RemapCorrected, RemapUncorrected                       uint32
	RemapPending, RemapFailed                              uint32
	RetiredSbe, RetiredDbe, RetiredPending                 uint32
	TemperatureC, TemperatureMemoryC                       uint32
	PowerMw                                                uint32
	SmClockMhz, MemoryClockMhz                             uint32
	UtilizationGpu, UtilizationMemory                      uint32
	EnergyMj                                               uint64
	ThrottleReasons                                        uint64
	UtilSampledNs, UtilSampledBusy                         uint64
	PcieReplays                                            uint64
	Persistence, ComputeMode, FanPercent, PerformanceState uint32
	NvmlHangUntilNs                                        uint64
	Reserved                                               [216]uint8
}

type simGpu struct {
	Magic, Version          uint32
	Size                    uint32
	Reserved0               uint32
	Pad0                    [48]uint8
	Facts                   simFacts
	Pad1                    [8]uint8
	MigMode, MigModePending uint32
	MigMade                 uint64
	Pad2                    [112]uint8
	Compute                 simEngine
	H2d, D2h                simCopyEngine
	Health                  simHealth
	EventSeq                uint64
	EventFutex              uint64
	Pad3                    [48]uint8
	Event                   [maxEvents]simEvent
	Mig                     [maxMIGInstances]simMigInstance
	MigCompute              [maxMIGInstances]simEngine
	Use                     [maxProcs]simUse
	RunSeq                  uint64
	Pad4                    [56]uint8
	Run                     [maxRuns]simRun
}
