package main

import (
	"cmp"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"path"
	"runtime"
	"strings"
)

// descriptor is OCI's: a blob by its content.
type descriptor struct {
	MediaType   string            `json:"mediaType"`
	Digest      string            `json:"digest"`
	Size        int               `json:"size"`
	Platform    map[string]string `json:"platform,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

const (
	indexType    = "application/vnd.oci.image.index.v1+json"
	manifestType = "application/vnd.oci.image.manifest.v1+json"
	configType   = "application/vnd.oci.image.config.v1+json"
	layerType    = "application/vnd.oci.image.layer.v1.tar" // not compressed: it is imported from a disk, and pushing compresses
)

// store collects blobs under their digests.
type store tree

func (s store) put(mediaType string, data []byte) descriptor {
	sum := sha256.Sum256(data)
	digest := hex.EncodeToString(sum[:])
	s["blobs/sha256/"+digest] = entry{data: data, mode: 0o644}
	return descriptor{MediaType: mediaType, Digest: "sha256:" + digest, Size: len(data)}
}

func (d descriptor) path() string { return "blobs/sha256/" + strings.TrimPrefix(d.Digest, "sha256:") }

// archive is the whole file. Both descriptions in it, OCI's and docker's, name the same blobs.
func (s spec) archive(layer []byte) ([]byte, error) {
	files := store{}
	encode := func(v any) []byte {
		data, err := json.Marshal(v)
		if err != nil { // strings, numbers, and maps of them
			panic(err)
		}
		return data
	}
	layerBlob := files.put(layerType, layer)
	configuration, err := s.configuration(layerBlob.Digest)
	if err != nil {
		return nil, err
	}
	configBlob := files.put(configType, encode(configuration))
	manifest := files.put(manifestType, encode(map[string]any{
		"schemaVersion": 2, "mediaType": manifestType, "config": configBlob, "layers": []descriptor{layerBlob},
	}))
	manifest.Platform = map[string]string{"architecture": runtime.GOARCH, "os": "linux"}
	var named []descriptor
	for _, tag := range s.tags {
		name := manifest
		_, version, _ := strings.Cut(path.Base(tag), ":")
		name.Annotations = map[string]string{"io.containerd.image.name": tag, "org.opencontainers.image.ref.name": cmp.Or(version, "latest")}
		named = append(named, name)
	}
	files["oci-layout"] = entry{data: encode(map[string]string{"imageLayoutVersion": "1.0.0"}), mode: 0o644}
	files["index.json"] = entry{data: encode(map[string]any{"schemaVersion": 2, "mediaType": indexType, "manifests": named}), mode: 0o644}
	files["manifest.json"] = entry{data: encode([]map[string]any{{
		"Config": configBlob.path(), "RepoTags": s.tags, "Layers": []string{layerBlob.path()},
	}}), mode: 0o644}
	return tree(files).tar()
}

// configuration is what the image says of itself. It has no date: that would change its digest with every build.
func (s spec) configuration(layer string) (map[string]any, error) {
	labels := map[string]string{}
	for _, label := range s.labels {
		key, value, found := strings.Cut(label, "=")
		if !found {
			return nil, fmt.Errorf("label %q is not KEY=VALUE", label)
		}
		labels[key] = value
	}
	config := map[string]any{"Env": []string{"PATH=" + s.env}, "Labels": labels, "WorkingDir": "/"}
	if s.entrypoint != "" {
		config["Entrypoint"] = strings.Split(s.entrypoint, ",")
	}
	return map[string]any{
		"architecture": runtime.GOARCH, "os": "linux", "config": config,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{layer}},
	}, nil
}
