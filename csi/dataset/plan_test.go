package dataset

import (
	"errors"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"github.com/kerf-gpu/kerf/internal/node"
)

func TestPlan(t *testing.T) {
	old, recent := time.Unix(1, 0), time.Unix(2, 0)
	for _, row := range []struct {
		name                 string
		need, free, reserved node.Bytes // of 1000; the marks are 900 and 800
		trees                []candidate
		want                 []string
		refused              *CapacityError
	}{
		{name: "fits", need: 100, free: 200},
		{name: "fits, and nothing goes", need: 100, free: 200, trees: []candidate{{name: "a", frees: 50}}},
		{name: "promised to another", need: 100, free: 200, reserved: 100, refused: &CapacityError{Need: 100}},
		{name: "the oldest goes", need: 100, free: 150, trees: []candidate{{name: "b", frees: 200, used: recent}, {name: "a", frees: 200, used: old}}, want: []string{"a"}},
		{name: "down to the low mark", need: 100, free: 150, trees: []candidate{{name: "a", frees: 100, used: old}, {name: "b", frees: 100, used: recent}}, want: []string{"a", "b"}},
		{name: "the high mark is enough", need: 100, free: 150, trees: []candidate{{name: "a", frees: 60}}, want: []string{"a"}},
		{name: "equal ages go by name", need: 100, free: 150, trees: []candidate{{name: "b", frees: 300}, {name: "a", frees: 300}}, want: []string{"a"}},
		{name: "pinned and referenced stay", need: 100, free: 150, trees: []candidate{{name: "a", frees: 300, pinned: true}, {name: "b", frees: 200, referenced: true}},
			refused: &CapacityError{Need: 100, Free: 50, Pinned: 300, Referenced: 200}},
		{name: "nothing goes for what does not fit anyway", need: 900, free: 150, trees: []candidate{{name: "a", frees: 100}}, refused: &CapacityError{Need: 900, Free: 50}},
		{name: "more than there is", need: 2000, free: 1000, refused: &CapacityError{Need: 2000, Free: 900}},
		{name: "a full disk", need: 1, free: 0, refused: &CapacityError{Need: 1}},
	} {
		got, err := plan(row.need, space{total: 1000, free: row.free, reserved: row.reserved, high: 90, low: 80}, row.trees)
		var refused *CapacityError
		errors.As(err, &refused)
		if diff := cmp.Diff(row.want, got); diff != "" {
			t.Errorf("%s: evicts (-want +got)\n%s", row.name, diff)
		}
		if diff := cmp.Diff(row.refused, refused); diff != "" {
			t.Errorf("%s: refusal (-want +got)\n%s", row.name, diff)
		}
	}
}
