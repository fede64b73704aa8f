package fetch

import (
	"context"
	"fmt"
)

// Open makes the source that a Spec describes. It asks nothing of the network: List does.
func Open(_ context.Context, s Spec, p Policy, c Credentials) (Source, error) {
	if err := s.Validate(); err != nil {
		return nil, err
	}
	open := map[Kind]func(Spec, Policy, Credentials) (Source, error){S3: openS3, HTTP: openWeb, OCI: openOCI, HF: openHF, Peer: openPeer}[s.Kind]
	if open == nil {
		return nil, fmt.Errorf("source %s: not known", s.Kind)
	}
	src, err := open(s, p.withDefaults(), c)
	if err != nil {
		return nil, fmt.Errorf("open %s: %w", s, err)
	}
	return src, nil
}
