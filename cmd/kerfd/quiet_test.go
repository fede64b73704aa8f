package main

import (
	"fmt"
	"testing"
	"time"
)

func TestQuiet(t *testing.T) {
	var q quiet
	at := func(seconds int) time.Time { return time.Unix(int64(seconds), 0) }
	for i, tt := range []struct {
		kind   string
		second int
		before int
		due    bool
	}{
		{"a", 0, 0, true}, {"a", 1, 0, false}, {"b", 1, 0, true}, {"a", 9, 0, false}, {"a", 10, 2, true}, {"a", 11, 0, false}, {"a", 30, 1, true}, {"a", 60, 0, true},
	} {
		if before, due := q.pass(tt.kind, at(tt.second)); before != tt.before || due != tt.due {
			t.Errorf("line %d: %d, %v; want %d, %v", i, before, due, tt.before, tt.due)
		}
	}
	for i := range 3 * maxQuiet {
		q.pass(fmt.Sprint(i), at(100))
	}
	if len(q.last) > maxQuiet {
		t.Errorf("%d kinds are remembered", len(q.last))
	}
}
