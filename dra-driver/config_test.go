package dra

import (
	"encoding/json"
	"strings"
	"testing"
)

const head = `"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"ShareConfig"`

// configs is good and bad ShareConfigs. The admission policy's CEL is held to the same table in policy_test.go.
var configs = []struct {
	name, text string
	err        string // part of the error; empty: valid
	unseen     bool   // a parsed object does not show what is wrong, or there is none
}{
	{"nothing but its name", `{` + head + `}`, "", false},
	{"every field", `{` + head + `,"memoryLimit":"24Gi","burst":false,"class":"burstable","tier":"time","minResident":"4Gi","backend":"shim"}`, "", false},
	{"fields first", `{"burst":true,` + head + `}`, "", false},
	{"decimal units and fractions", `{` + head + `,"memoryLimit":"1.5Gi","minResident":"500M"}`, "", false},
	{"a fraction of a byte", `{` + head + `,"memoryLimit":"0.01Gi"}`, "", false},
	{"the least and the most", `{` + head + `,"memoryLimit":"1Pi","minResident":"0"}`, "", false},
	{"resident to the limit", `{` + head + `,"memoryLimit":"4Gi","minResident":"4096Mi"}`, "", false},

	{"empty", ``, "not a JSON object", true},
	{"null", `null`, "not a JSON object", false},
	{"empty object", `{}`, "apiVersion: missing; write apiVersion: gpu.kerf.dev/v1alpha1", false},
	{"a list", `[{` + head + `}]`, "not a JSON object", false},
	{"a text", `"ShareConfig"`, "not a JSON object", false},
	{"no kind", `{"apiVersion":"gpu.kerf.dev/v1alpha1"}`, "kind: missing", false},
	{"kind null", `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":null}`, "kind null: not known", false},
	{"another kind", `{"apiVersion":"gpu.kerf.dev/v1alpha1","kind":"GpuConfig"}`, `kind "GpuConfig": not known to this driver; write ShareConfig`, false},
	{"a later version", `{"apiVersion":"gpu.kerf.dev/v1","kind":"ShareConfig"}`, `apiVersion "gpu.kerf.dev/v1"`, false},
	{"a version that is a number", `{"apiVersion":1,"kind":"ShareConfig"}`, "apiVersion 1", false},
	{"an unknown field", `{` + head + `,"memory":"24Gi"}`, "memory: no such field in gpu.kerf.dev/v1alpha1; the fields are memoryLimit,", false},
	{"case matters", `{` + head + `,"memorylimit":"24Gi"}`, "memorylimit: no such field", false},
	{"a key twice", `{` + head + `,"burst":true,"burst":false}`, "burst: written twice", true},
	{"the kind twice", `{` + head + `,"kind":"ShareConfig"}`, "kind: written twice", true},
	{"something follows", `{` + head + `}{}`, "something follows", true},
	{"cut off", `{` + head + `,"burst":tr`, "not JSON", true},
	{"not closed", `{` + head, "not JSON", true},
	{"not UTF-8", "{" + head + ",\"class\":\"\xff\"}", "not UTF-8", true},
	{"too large", `{` + head + `,"class":"` + strings.Repeat("x", maxConfig) + `"}`, "Kubernetes takes 10240", true},

	{"memoryLimit null", `{` + head + `,"memoryLimit":null}`, `memoryLimit null: not a text; write "24Gi", or leave the field out`, false},
	{"memoryLimit a number", `{` + head + `,"memoryLimit":1073741824}`, "memoryLimit 1073741824: not a text", false},
	{"memoryLimit a huge number", `{` + head + `,"memoryLimit":1e309}`, "memoryLimit 1e309: not a text", true},
	{"memoryLimit that takes minutes to parse", `{` + head + `,"memoryLimit":"99999999E99999999999"}`, `memoryLimit "99999999E99999999999": not a size; write "24Gi"`, false},
	{"both limits that take minutes to parse", `{` + head + `,"memoryLimit":"9E99999999999","minResident":"9E99999999999"}`, "not a size", false},
	{"memoryLimit with an exponent", `{` + head + `,"memoryLimit":"1e9"}`, "not a size", false},
	{"memoryLimit in thousandths", `{` + head + `,"memoryLimit":"1073741824000m"}`, "not a size", false},
	{"memoryLimit with a line break", `{` + head + `,"memoryLimit":"1Gi\n"}`, "not a size", false},
	{"memoryLimit a huge quantity", `{` + head + `,"memoryLimit":"1e309"}`, `memoryLimit`, false},
	{"memoryLimit of 20 digits", `{` + head + `,"memoryLimit":"99999999999999999999"}`, "not a size", false},
	{"memoryLimit of 18 digits", `{` + head + `,"memoryLimit":"999999999999999999Pi"}`, "outside 2Mi to 1Pi", false},
	{"memoryLimit a percentage", `{` + head + `,"memoryLimit":"150%"}`, `memoryLimit "150%": not a size`, false},
	{"memoryLimit empty", `{` + head + `,"memoryLimit":""}`, "not a size", false},
	{"memoryLimit an object", `{` + head + `,"memoryLimit":{}}`, "memoryLimit {}: not a text", false},
	{"memoryLimit a list", `{` + head + `,"memoryLimit":["1Gi"]}`, "not a text", false},
	{"memoryLimit negative", `{` + head + `,"memoryLimit":"-1Gi"}`, `memoryLimit "-1Gi": not a size`, false},
	{"memoryLimit zero", `{` + head + `,"memoryLimit":"0"}`, `memoryLimit "0": outside`, false},
	{"memoryLimit a byte short", `{` + head + `,"memoryLimit":"2097151"}`, "outside", false},
	{"memoryLimit half a byte short", `{` + head + `,"memoryLimit":"2097151.5"}`, "outside", false},
	{"memoryLimit a byte over", `{` + head + `,"memoryLimit":"1125899906842625"}`, "outside", false},
	{"minResident negative", `{` + head + `,"minResident":"-1"}`, `minResident "-1": not a size`, false},
	{"minResident above the limit", `{` + head + `,"memoryLimit":"4Gi","minResident":"5Gi"}`, "minResident 5Gi: above memoryLimit 4Gi", false},
	{"burst a text", `{` + head + `,"burst":"false"}`, `burst "false": not true or false`, false},
	{"burst null", `{` + head + `,"burst":null}`, "burst null", false},
	{"burst a number", `{` + head + `,"burst":0}`, "burst 0", false},
	{"class unknown", `{` + head + `,"class":"gold"}`, `class "gold": not known; write guaranteed, burstable or besteffort, or leave`, false},
	{"class in capitals", `{` + head + `,"class":"Guaranteed"}`, `class "Guaranteed": not known`, false},
	{"class empty", `{` + head + `,"class":""}`, `class "": not known`, false},
	{"class null", `{` + head + `,"class":null}`, "class null", false},
	{"class a number", `{` + head + `,"class":1}`, "class 1", false},
	{"tier unknown", `{` + head + `,"tier":"timeslice"}`, "write time, mps, mig or whole", false},
	{"tier a list", `{` + head + `,"tier":["time"]}`, "tier", false},
	{"backend unknown", `{` + head + `,"backend":"kernel"}`, "write auto, shim or native", false},
}

func TestDecodeConfig(t *testing.T) {
	for _, tt := range configs {
		t.Run(tt.name, func(t *testing.T) {
			c, err := DecodeConfig([]byte(tt.text))
			switch {
			case tt.err == "" && err != nil:
				t.Fatal(err)
			case tt.err == "":
				roundTrip(t, c)
			case err == nil || !strings.Contains(err.Error(), tt.err) || strings.Contains(err.Error(), "\n") || len(err.Error()) > 300:
				t.Errorf("error %v, want one short line with %q", err, tt.err)
			}
		})
	}
}

// roundTrip: the webhook writes configurations with encoding/json, and they are read here.
func roundTrip(t *testing.T, c ShareConfig) {
	t.Helper()
	text, err := json.Marshal(c)
	if err != nil {
		t.Fatal(err)
	}
	again, err := DecodeConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	if second, _ := json.Marshal(again); string(second) != string(text) {
		t.Errorf("%s became %s", text, second)
	}
}

func TestEveryFieldHasALine(t *testing.T) {
	c, err := DecodeConfig([]byte(configs[1].text))
	if err != nil {
		t.Fatal(err)
	}
	text := mustJSON(c)
	var members map[string]any
	if err := json.Unmarshal([]byte(text), &members); err != nil || len(members) != len(fields)+2 {
		t.Errorf("%d members in %s, want %d fields, apiVersion and kind: is a field missing in the table, or in the second case above?", len(members), text, len(fields))
	}
}

func TestTighten(t *testing.T) {
	for _, tt := range []struct {
		name, class, claim string
		want               string // members of the result beside apiVersion and kind
		err                string
	}{
		{"nobody says anything", ``, ``, ``, ""},
		{"what the class leaves out is the claim's", ``, `"memoryLimit":"90Gi","burst":true`, `"memoryLimit":"90Gi","burst":true`, ""},
		{"the class alone", `"memoryLimit":"90Gi","tier":"time"`, ``, `"memoryLimit":"90Gi","tier":"time"`, ""},
		{"below the ceiling", `"memoryLimit":"90Gi","minResident":"8Gi"`, `"memoryLimit":"80Gi","minResident":"0"`, `"memoryLimit":"80Gi","minResident":"0"`, ""},
		{"at the ceiling, written otherwise", `"memoryLimit":"1Gi"`, `"memoryLimit":"1024Mi"`, `"memoryLimit":"1Gi"`, ""},
		{"no burst", `"burst":true`, `"burst":false`, `"burst":false`, ""},
		{"a weaker class", `"class":"burstable"`, `"class":"besteffort"`, `"class":"besteffort"`, ""},
		{"auto leaves the choice", `"backend":"auto"`, `"backend":"native"`, `"backend":"native"`, ""},

		{"above the ceiling", `"memoryLimit":"90Gi"`, `"memoryLimit":"91Gi"`, ``, "memoryLimit 91Gi: the DeviceClass allows 90Gi"},
		{"resident above the ceiling", `"minResident":"8Gi"`, `"minResident":"9Gi"`, ``, "minResident 9Gi: the DeviceClass allows 8Gi"},
		{"burst where there is none", `"burst":false`, `"burst":true`, ``, "burst true: the DeviceClass says false"},
		{"a stronger class", `"class":"burstable"`, `"class":"guaranteed"`, ``, "class guaranteed: the DeviceClass allows burstable"},
		{"another tier", `"tier":"time"`, `"tier":"whole"`, ``, "tier whole: the DeviceClass says time"},
		{"another backend", `"backend":"shim"`, `"backend":"native"`, ``, "backend native: the DeviceClass says shim"},
		{"together too much", `"minResident":"8Gi"`, `"memoryLimit":"4Gi"`, ``, "minResident 8Gi: above memoryLimit 4Gi"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			got, err := config(t, tt.class).Tighten(config(t, tt.claim))
			if tt.err != "" {
				if err == nil || !strings.Contains(err.Error(), tt.err) {
					t.Fatalf("error %v, want one with %q", err, tt.err)
				}
				return
			}
			if err != nil {
				t.Fatal(err)
			}
			if text, _ := json.Marshal(got); string(text) != mustJSON(config(t, tt.want)) {
				t.Errorf("got %s, want %s", text, tt.want)
			}
		})
	}
}

func mustJSON(v any) string {
	text, err := json.Marshal(v)
	if err != nil {
		panic(err)
	}
	return string(text)
}

// config is a ShareConfig with these members.
func config(t testing.TB, members string) ShareConfig {
	t.Helper()
	c, err := DecodeConfig([]byte(configText(members)))
	if err != nil {
		t.Fatal(err)
	}
	return c
}

func configText(members string) string {
	if members != "" {
		members = "," + members
	}
	return "{" + head + members + "}"
}

// What the decoder takes, it writes and takes again; it never panics and never says more than an event can hold.
func FuzzDecodeConfig(f *testing.F) {
	for _, tt := range configs {
		f.Add([]byte(tt.text))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := DecodeConfig(data)
		if err != nil {
			if len(err.Error()) > 600 {
				t.Errorf("an error of %d bytes", len(err.Error()))
			}
			return
		}
		roundTrip(t, c)
		if _, err := c.Tighten(c); err != nil {
			t.Errorf("not allowed by itself: %v", err)
		}
	})
}
