package bench

import (
	"math"
	"slices"
)

// Percentile is the nearest-rank percentile p (0 to 100) of samples: always a value that was measured,
// never one made up between two. It is NaN where there are none. samples need not be sorted.
func Percentile(samples []float64, p float64) float64 {
	if len(samples) == 0 {
		return math.NaN()
	}
	sorted := slices.Sorted(slices.Values(samples))
	rank := int(math.Ceil(p / 100 * float64(len(sorted))))
	return sorted[min(max(rank, 1), len(sorted))-1]
}

// Median is the 50th percentile.
func Median(samples []float64) float64 { return Percentile(samples, 50) }
