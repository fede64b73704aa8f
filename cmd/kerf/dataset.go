package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"github.com/kerf-gpu/kerf/csi/dataset"
	"github.com/kerf-gpu/kerf/csi/fetch"
	"github.com/kerf-gpu/kerf/csi/mount"
	"github.com/kerf-gpu/kerf/internal/node"
)

// datasetCommand works on a store itself, without a daemon: whoever runs it owns the store as long as it runs.
func datasetCommand() *cobra.Command {
	var dir string
	cmd := &cobra.Command{
		Use:     "dataset",
		Short:   "Keep verified copies of datasets on this node",
		Example: "  kerf dataset add hf://org/model@main\n  kerf dataset list\n  kerf dataset mount sha256:… /mnt/model",
	}
	cmd.PersistentFlags().StringVar(&dir, "dir", "/var/lib/kerf/datasets", "where the datasets are kept")
	with := func(use, short string, args int, do func(cmd *cobra.Command, s *dataset.Store, args []string) error) *cobra.Command {
		c := &cobra.Command{Use: use, Short: short, Args: cobra.ExactArgs(args)}
		c.RunE = func(cmd *cobra.Command, args []string) error {
			return inStore(dir, func(s *dataset.Store) error { return do(cmd, s, args) })
		}
		return c
	}
	var asJSON bool
	list := with("list", "Show the datasets that are here", 0, func(cmd *cobra.Command, s *dataset.Store, _ []string) error {
		return writeDatasets(cmd.OutOrStdout(), s.List(), asJSON)
	})
	list.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.AddCommand(list,
		with("add SOURCE", "Copy a dataset here, or go on with a copy that was cut short; keys are taken from AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY, HF_TOKEN", 1, addDataset),
		with("pin DIGEST", "Keep a dataset from eviction", 1, func(_ *cobra.Command, s *dataset.Store, a []string) error { return s.Pin(a[0], true) }),
		with("unpin DIGEST", "Let a dataset be evicted", 1, func(_ *cobra.Command, s *dataset.Store, a []string) error { return s.Pin(a[0], false) }),
		with("rm DIGEST", "Remove a dataset that nobody uses", 1, func(_ *cobra.Command, s *dataset.Store, a []string) error { return s.Remove(a[0]) }),
		with("verify DIGEST", "Read all of a dataset, and compare digests", 1, func(cmd *cobra.Command, s *dataset.Store, a []string) error { return s.Verify(cmd.Context(), a[0]) }),
		with("mount DIGEST DIRECTORY", "Mount a dataset, read-only", 2, func(_ *cobra.Command, s *dataset.Store, a []string) error { return mountDataset(s, a[0], a[1]) }),
		with("umount DIRECTORY", "Unmount a dataset", 1, func(_ *cobra.Command, s *dataset.Store, a []string) error { return unmountDataset(s, a[0]) }))
	return cmd
}

func inStore(dir string, do func(*dataset.Store) error) error {
	s, err := dataset.Open(dataset.Config{Dir: dir}, func(target string) bool {
		is, err := mount.Is(target)
		return is || err != nil // in doubt it is in use
	})
	if err != nil {
		return err
	}
	return errors.Join(do(s), s.Close())
}

// everywhere is what root may reach: there is no tenant whose address it is.
var everywhere = fetch.Policy{Plain: true, Networks: []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}}

func addDataset(cmd *cobra.Command, s *dataset.Store, args []string) error {
	spec, err := fetch.ParseSpec(args[0])
	if err != nil {
		return err
	}
	c := fetch.Credentials{AccessKey: os.Getenv("AWS_ACCESS_KEY_ID"), SecretKey: os.Getenv("AWS_SECRET_ACCESS_KEY"), SessionToken: os.Getenv("AWS_SESSION_TOKEN")}
	if spec.Kind == fetch.HF {
		c.Token = os.Getenv("HF_TOKEN")
	}
	src, err := fetch.Open(cmd.Context(), spec, everywhere, c)
	if err != nil {
		return err
	}
	digest, err := s.Load(cmd.Context(), src, reporter(cmd.ErrOrStderr()))
	if err != nil {
		return err
	}
	_, err = fmt.Fprintln(cmd.OutOrStdout(), digest)
	return err
}

// reporter writes a line a second at most.
func reporter(w io.Writer) func(done, total node.Bytes, p fetch.Progress) {
	var last time.Time
	return func(done, total node.Bytes, p fetch.Progress) {
		if now := time.Now(); now.Sub(last) >= time.Second {
			last = now
			fmt.Fprintf(w, "%s of %s, limited by %s\n", done, total, p.LimitedBy())
		}
	}
}

func writeDatasets(w io.Writer, all []dataset.Tree, asJSON bool) error {
	slices.SortFunc(all, func(a, b dataset.Tree) int {
		return cmp.Or(strings.Compare(a.Source, b.Source), strings.Compare(a.Digest, b.Digest))
	})
	if asJSON {
		encoder := json.NewEncoder(w)
		encoder.SetIndent("", "  ")
		return encoder.Encode(struct {
			Schema   string         `json:"schema"`
			Datasets []dataset.Tree `json:"datasets"`
		}{"kerf.datasets/v1", all})
	}
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(t, "DIGEST\tSIZE\tFILES\tPINNED\tMOUNTS\tUSED\tSOURCE")
	for _, d := range all {
		fmt.Fprintf(t, "%s\t%s\t%d\t%t\t%d\t%s\t%s\n", d.Digest, d.Size, d.Files, d.Pinned, len(d.References), d.Used.Format(time.DateTime), d.Source)
	}
	return t.Flush()
}

func mountDataset(s *dataset.Store, digest, target string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	dir, err := s.Reference(digest, target)
	if err != nil {
		return err
	}
	if err := mount.Below(filepath.Dir(target)).Bind(dir, target, mount.Options{ReadOnly: true}); err != nil {
		err = fmt.Errorf("mount dataset %s: %w", digest, err)
		if is, unknown := mount.Is(target); is || unknown != nil { // of an earlier call: it is in use
			return err
		}
		return errors.Join(err, s.Release(target))
	}
	return nil
}

func unmountDataset(s *dataset.Store, target string) error {
	target, err := filepath.Abs(target)
	if err != nil {
		return err
	}
	for _, t := range s.List() {
		if !slices.Contains(t.References, target) {
			continue
		}
		if err := mount.Below(filepath.Dir(target)).Unbind(target); err != nil {
			return fmt.Errorf("unmount dataset %s: %w", t.Digest, err)
		}
		return s.Release(target)
	}
	return fmt.Errorf("unmount dataset: none is mounted at %s; kerf dataset list --json names the places", target)
}
