// Command kerf-controller is Kerf's cluster-wide part: an admission webhook with what that needs, and evictions.
//
//	/mutate-pods      pods that ask for GPUs as HAMi has them do become pods with a claim (convert.go, selectors.go, template.go)
//	/validate-config  ShareConfigs in claims, templates and classes, read as the driver reads them (validate.go)
//	certificates      its own, in a Secret that all replicas share, renewed in time, and made known to the API server (certs.go)
//	collection        templates that no pod has used for an hour (collect.go)
//	evictions         pods leave devices that are to be drained, within budgets (evict)
//
// Every replica does everything but evictions, for which one leads. Writes name what they change (resourceVersion,
// preconditions, create), so the second to come finds a conflict, looks again and sees that it is done.
//
// Traps:
//
//   - At admission a pod may have no name and no namespace: a ReplicaSet gives generateName, and the request has the namespace.
//   - A dry run must leave nothing behind: no template is made for it.
//   - What users write ends up in CEL, which the scheduler runs: only tokens of a known shape, and as quoted literals.
package main
