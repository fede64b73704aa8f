package node

import "strings"

// Vitals is what a GPU says of itself at one moment: its Fault, and the numbers behind it. What a card or a driver cannot tell is zero,
// and Told lacks it.
type Vitals struct {
	Fault
	Told Told `json:"told"`

	Corrected             uint64          `json:"corrected,omitempty"` // ECC errors repaired since the driver loaded
	RemappedCorrectable   int             `json:"remappedCorrectable,omitempty"`
	RemappedUncorrectable int             `json:"remappedUncorrectable,omitempty"`
	SRAMThreshold         bool            `json:"sramThreshold,omitempty"` // more SRAM errors than a card may have
	Temperature           int             `json:"temperature,omitempty"`   // °C
	MemoryTemperature     int             `json:"memoryTemperature,omitempty"`
	Throttle              ThrottleReasons `json:"throttle,omitempty"`
	Power                 float64         `json:"power,omitempty"`  // watts
	Energy                float64         `json:"energy,omitempty"` // joules since the driver loaded
	Replays               uint64          `json:"replays,omitempty"`
	Link                  PCIeLink        `json:"link"`
	NVLinks               int             `json:"nvlinks,omitempty"`   // that the card has
	NVLinksUp             int             `json:"nvlinksUp,omitempty"` // of these
	MemoryUsed            Bytes           `json:"memoryUsed,omitempty"`
	MemoryTotal           Bytes           `json:"memoryTotal,omitempty"`
	Utilization           Percent         `json:"utilization,omitempty"`
}

// Told is which parts of Vitals a card told; zero alone does not say that nothing is wrong.
type Told uint32

// The parts.
const (
	ToldRecovery Told = 1 << iota
	ToldRemap
	ToldECC
	ToldThrottle
	ToldReplays
	ToldSRAM
)

// Has reports whether a part was told.
func (t Told) Has(part Told) bool { return t&part != 0 }

// ThrottleReasons is why clocks are lower than they could be, in NVML's bits.
type ThrottleReasons uint64

// Those that say that something is wrong, or at least hot; the rest is idling and limits that somebody set.
const (
	ThrottleHardware   ThrottleReasons = 0x8
	ThrottleThermalSW  ThrottleReasons = 0x20
	ThrottleThermalHW  ThrottleReasons = 0x40
	ThrottlePowerBrake ThrottleReasons = 0x80
)

// ThrottleNames are the reasons with their names, for metrics and texts.
var ThrottleNames = []struct {
	Bit  ThrottleReasons
	Name string
}{
	{0x1, "idle"}, {0x2, "clocks_setting"}, {0x4, "power_cap"}, {ThrottleHardware, "hardware_slowdown"}, {0x10, "sync_boost"},
	{ThrottleThermalSW, "thermal_software"}, {ThrottleThermalHW, "thermal_hardware"}, {ThrottlePowerBrake, "power_brake"}, {0x100, "display"},
}

func (t ThrottleReasons) String() string {
	var names []string
	for _, n := range ThrottleNames {
		if t&n.Bit != 0 {
			names = append(names, n.Name)
		}
	}
	return strings.Join(names, ", ")
}
