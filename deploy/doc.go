// Package deploy holds what installs Kerf in a cluster; its test reads all of it as the API server would.
//
//	chart/      the Helm chart          manifests/  what it renders, for those without Helm
//	examples/   a runnable file a use   policy/     writes the chart's generated policy
//	image/      makes the image         cluster/, e2e/  modules of their own: a Kubernetes for development, and the tests on it
package deploy

//go:generate go run ./policy chart/files/share-configs.yaml
