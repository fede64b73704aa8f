// Package e2e installs Kerf on a real Kubernetes node with simulated GPUs, as its users do, and shows that it holds what it
// promises: there, under load, while its parts are killed, and with input that is wrong. It has tests only.
//
//	stage     a configuration of Kerf; its scenarios run one after the other on one installation
//	scenario  one thing that must hold, as a function that fails its test otherwise; most leave a figure for the table at the end
//	scene     what a scenario works with: a namespace of its own, and the means to make pods and wait for them
//	node      the one node, whose files are in the cluster's directory: what is on record there, and what is left
//
// Traps: scenarios share the node's eight cards, so each waits until nothing of its own is left there, and a scenario that
// needs a certain card says so with a selector. Nothing here sleeps: objects are watched, files are looked at again until a deadline.
package e2e
