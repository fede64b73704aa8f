package nic

import (
	"encoding/json"
	"reflect"
	"strings"
	"testing"

	dra "github.com/kerf-gpu/kerf/dra-driver"
)

func configText(members string) []byte {
	return []byte(`{"apiVersion":"nic.kerf.dev/v1alpha1","kind":"NicConfig"` + members + `}`)
}

func TestDecodeConfig(t *testing.T) {
	for members, want := range map[string]string{ // part of the error; "": none
		``: "",
		`,"interface":"net1","mtu":9000,"mac":"02:00:00:00:00:01","rdma":"require","maxTxRate":100`:                                                       "",
		`,"addresses":["10.0.0.2/24","fd00::2/64"],"routes":[{"to":"10.1.0.0/16","via":"10.0.0.1"},{"to":"fd01::/64"}]`:                                   "",
		`,"vlan":100,"vlanQoS":3,"vlanProto":"802.1ad","spoofchk":false,"trust":true,"linkState":"enable","minTxRate":1,"guid":"02:00:00:00:00:00:00:01"`: "",
		`,"interface":"eth0"`:                              `interface "eth0": the pod has one of this name already; write "net1"`,
		`,"interface":"a-name-that-is-long"`:               "not an interface's name",
		`,"interface":"../x"`:                              "not an interface's name",
		`,"mtu":10`:                                        "mtu 10: outside 68 to 65535; write 9000",
		`,"mtu":"9000"`:                                    "not a value of this field",
		`,"mtu":null`:                                      "not a value of this field",
		`,"mac":"01:00:00:00:00:01"`:                       "a multicast address",
		`,"mac":"02:00"`:                                   "not six bytes",
		`,"addresses":["10.0.0.2"]`:                        "addresses",
		`,"addresses":["127.0.0.1/8"]`:                     "127.0.0.1/8 is not an interface's address",
		`,"addresses":["10.0.0.2/24","10.0.0.2/24"]`:       "written twice",
		`,"routes":[{"via":"10.0.0.1"}]`:                   "a route without to",
		`,"routes":[{"to":"10.1.2.3/16"}]`:                 "10.1.0.0/16 is meant",
		`,"routes":[{"to":"0.0.0.0/0"}]`:                   "a default route, or so wide a one",
		`,"routes":[{"to":"10.1.0.0/16","via":"fd00::1"}]`: "one is IPv4, one IPv6",
		`,"routes":[{"to":"10.1.0.0/16","gw":"10.0.0.1"}]`: "not a value of this field",
		`,"rdma":"on"`:                                     "not known; write auto, require or off",
		`,"vlan":4095`:                                     "vlan 4095: outside 0 to 4094",
		`,"vlanQoS":1`:                                     "vlanQoS 1 without a vlan",
		`,"vlanProto":"802.1q"`:                            "vlanProto 802.1q without a vlan",
		`,"minTxRate":2,"maxTxRate":1`:                     "minTxRate 2 above maxTxRate 1",
		`,"linkState":"up"`:                                "not known; write auto, enable or disable",
		`,"guid":"02:00:00:00:00:01"`:                      "not eight bytes",
		`,"mtus":9000`:                                     "mtus: no such field in nic.kerf.dev/v1alpha1; the fields are interface, mtu",
		`,"mtu":9000,"mtu":1500`:                           "mtu: written twice",
	} {
		_, err := DecodeConfig(configText(members))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", members, err, want)
		}
	}
	for _, text := range []string{``, `[]`, `{"kind":"NicConfig"}`, `{"apiVersion":"nic.kerf.dev/v2","kind":"NicConfig"}`} {
		if _, err := DecodeConfig([]byte(text)); err == nil {
			t.Errorf("%s: no error", text)
		}
	}
}

// Every field is in the table, and overlay takes it over.
func TestEveryFieldHasALine(t *testing.T) {
	c := reflect.TypeFor[Config]()
	if c.NumField() != len(fields) {
		t.Errorf("%d fields, %d lines", c.NumField(), len(fields))
	}
	full := Config{}
	for i := range c.NumField() {
		name, _, _ := strings.Cut(c.Field(i).Tag.Get("json"), ",")
		if !strings.Contains(" "+strings.Join(fieldNames(), " ")+" ", " "+name+" ") {
			t.Errorf("%s has no line", name)
		}
		reflect.ValueOf(&full).Elem().Field(i).Set(reflect.New(c.Field(i).Type.Elem()))
	}
	if merged := dra.Overlay(Config{}, full); !reflect.DeepEqual(merged, full) {
		t.Errorf("overlay leaves out something: %+v", merged)
	}
}

func TestTighten(t *testing.T) {
	for _, tt := range []struct{ class, claim, want string }{
		{``, `,"mtu":9000`, ""},
		{`,"maxTxRate":100`, ``, ""},
		{`,"maxTxRate":100`, `,"maxTxRate":50`, ""},
		{`,"maxTxRate":100`, `,"maxTxRate":101`, "the DeviceClass allows 100"},
		{`,"maxTxRate":100`, `,"maxTxRate":0`, "the DeviceClass allows 100"}, // 0 is no limit
		{`,"maxTxRate":0`, `,"maxTxRate":7`, ""},
		{`,"rdma":"off"`, `,"rdma":"auto"`, "rdma auto: the DeviceClass says off"},
		{`,"mtu":9000`, `,"mtu":9000`, ""},
		{`,"minTxRate":100`, `,"maxTxRate":50`, "minTxRate 100 above maxTxRate 50"},
	} {
		class, err1 := DecodeConfig(configText(tt.class))
		claim, err2 := DecodeConfig(configText(tt.claim))
		if err1 != nil || err2 != nil {
			t.Fatal(err1, err2)
		}
		_, err := class.tighten(claim)
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("class %s, claim %s: %v, want %q", tt.class, tt.claim, err, tt.want)
		}
	}
}

func FuzzDecodeConfig(f *testing.F) {
	f.Add(configText(`,"routes":[{"to":"10.1.0.0/16","via":"10.0.0.1"}],"mac":"02:00:00:00:00:01"`))
	f.Fuzz(func(t *testing.T, text []byte) {
		c, err := DecodeConfig(text)
		if err != nil {
			return
		}
		written, err := json.Marshal(c)
		if err != nil {
			t.Fatal(err)
		}
		members := strings.TrimSuffix(strings.TrimPrefix(string(written), "{"), "}")
		if members != "" {
			members = "," + members
		}
		again, err := DecodeConfig(configText(members))
		if err != nil || !reflect.DeepEqual(again, c) {
			t.Errorf("%s is read as %s, and that as %+v (%v)", text, written, again, err)
		}
	})
}
