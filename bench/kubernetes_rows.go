package bench

import "fmt"

// What the scenarios on a cluster measure. Their results are named with the counts of the run; the ids are these.

var startRow = Row{ID: "KF-200", Name: fmt.Sprintf("%d pods on one node: first POST to all Running", startPods), Unit: "ns", Basis: Absolute}

var prepareRows = []Row{
	{"KF-210", fmt.Sprintf("NodePrepareResources, %d at once: in the driver (bounds of its histogram)", prepareAtOnce), "ns", Absolute,
		bound(10 * millisecond), bound(50 * millisecond)},
	{"KF-211", fmt.Sprintf("NodePrepareResources, %d at once: as kubelet sees it", prepareAtOnce), "ns", Absolute, nil, nil},
}

func kubernetesRows() []Row {
	rows := []Row{startRow}
	for _, s := range startSteps {
		rows = append(rows, Row{ID: s.id, Name: s.name, Unit: "ns", Basis: Added})
	}
	return append(rows, prepareRows...)
}

func scaleRows() []Row {
	return []Row{
		{"KF-300", "publish the GPUs of all nodes", "ns", Absolute, nil, nil},
		{"KF-301", "a node's slices in etcd", "B", Absolute, nil, nil},
		{"KF-302", "all slices in etcd", "B", Absolute, nil, nil},
		{"KF-310", "pods scheduled a second, with a slice each, claims there", "pods/s", Absolute, nil, nil},
		{"KF-311", "  POST to scheduled, with a slice each, claims there", "ns", Added, nil, nil},
		{"KF-312", "pods scheduled a second, with a slice each, from a template", "pods/s", Absolute, nil, nil},
		{"KF-313", "  POST to scheduled, with a slice each, from a template", "ns", Added, nil, nil},
	}
}
