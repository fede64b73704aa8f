package dra

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"k8s.io/apimachinery/pkg/runtime/schema"
	metadata "k8s.io/dynamic-resource-allocation/api/metadata/v1beta1"
	"k8s.io/dynamic-resource-allocation/kubeletplugin"

	"github.com/kerf-gpu/kerf/internal/durable"
	"github.com/kerf-gpu/kerf/vgpu/ledger"
)

// metadataOptions lets the library write the files in which a workload reads what it has, below
// /var/run/kubernetes.io/dra-device-attributes in its containers.
func metadataOptions(cdiDir string) []kubeletplugin.Option {
	return []kubeletplugin.Option{
		kubeletplugin.EnableDeviceMetadata(true, []schema.GroupVersion{metadata.SchemeGroupVersion}),
		kubeletplugin.CDIDirectory(cdiDir),
		kubeletplugin.MetadataFileOps(kubeletplugin.MetadataFileOperations{WriteFile: durable.Replace}),
	}
}

// metadataDir has a directory for each claim, as the library names it.
func (d *Driver) metadataDir() string {
	return filepath.Join(d.dataDir(), "dra-device-metadata")
}

func metadataName(o ledger.Owner) string { return o.Namespace + "_" + o.Name }

// sweepMetadata removes the files of claims that hold nothing. The library does so when kubelet unprepares a claim; not for claims
// that kubelet has forgotten, nor for those that ended while this driver did not run.
func (d *Driver) sweepMetadata(owners []ledger.Owner) error {
	uids, names := make(map[string]bool), make(map[string]bool)
	for _, o := range owners {
		uids[o.UID], names[metadataName(o)] = true, true
	}
	return d.removeMetadata(func(uid string) bool { return !uids[uid] }, func(name string) bool { return !names[name] })
}

// forgetMetadata removes the files of one claim. Its directory may be that of a later claim with its name.
func (d *Driver) forgetMetadata(gone ledger.Owner) error {
	again := slices.ContainsFunc(d.kind.Owners(), func(o ledger.Owner) bool { return metadataName(o) == metadataName(gone) })
	return d.removeMetadata(func(uid string) bool { return uid == gone.UID }, func(name string) bool { return name == metadataName(gone) && !again })
}

func (d *Driver) removeMetadata(goneUID, goneName func(string) bool) error {
	if d.config.CDIDir == "" {
		return nil
	}
	prefix := d.name + "_metadata_"
	specs, err := filepath.Glob(filepath.Join(d.config.CDIDir, prefix+"*.json"))
	errs := []error{err}
	for _, file := range specs {
		if uid, _, _ := strings.Cut(strings.TrimPrefix(filepath.Base(file), prefix), "_"); goneUID(uid) {
			errs = append(errs, removed(os.Remove(file)))
		}
	}
	claims, err := os.ReadDir(d.metadataDir())
	errs = append(errs, removed(err))
	for _, claim := range claims {
		if goneName(claim.Name()) {
			errs = append(errs, os.RemoveAll(filepath.Join(d.metadataDir(), claim.Name())))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove the metadata of claims that are gone: %w", err)
	}
	return nil
}

// removed takes what is not there for removed.
func removed(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// temporaryFor is for how long a file may be in the making, in this kerfd or in one that it follows.
const temporaryFor = time.Minute

// sweepTemporary removes what a killed kerfd left half-written.
func (d *Driver) sweepTemporary(now time.Time) error {
	if d.config.CDIDir == "" {
		return nil
	}
	inSpecs, err1 := filepath.Glob(durable.Temporary(filepath.Join(d.config.CDIDir, d.name+"_metadata_*")))
	inClaims, err2 := filepath.Glob(durable.Temporary(filepath.Join(d.metadataDir(), "*", "*", "metadata.json")))
	errs := []error{err1, err2}
	for _, file := range append(inSpecs, inClaims...) {
		if info, err := os.Stat(file); err == nil && now.Sub(info.ModTime()) >= temporaryFor {
			errs = append(errs, removed(os.Remove(file)))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("remove half-written metadata: %w", err)
	}
	return nil
}
