package doctor

import "regexp"

// secrets are what must not leave a node in a bundle, whoever put it into a text: keys and tokens by their form, and the names of
// processes in the kernel's lines, which tenants choose.
var secrets = []struct {
	find    *regexp.Regexp
	replace string
}{
	{regexp.MustCompile(`(?i)((?:password|passwd|secret|token|api[_-]?key|authorization|credential)[a-z_-]*"?\s*[:=]\s*"?(?:bearer )?)[^\s",}]+`), "${1}REDACTED"},
	{regexp.MustCompile(`\beyJ[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]{10,}\.[A-Za-z0-9_-]*`), "REDACTED"}, // a JSON web token
	{regexp.MustCompile(`\b(?:AKIA|ASIA)[A-Z0-9]{16}\b`), "REDACTED"},
	{regexp.MustCompile(`\b(?:hf|ghp|gho|glpat|sk)[_-][A-Za-z0-9_-]{16,}`), "REDACTED"},
	{regexp.MustCompile(`(://[^/\s:@]+:)[^/\s@]+@`), "${1}REDACTED@"},
	{regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*PRIVATE KEY-----.*?-----END [A-Z ]*PRIVATE KEY-----`), "REDACTED"},
	{regexp.MustCompile(`(pid='?[0-9]+'?, name=)[^,\n]*`), "${1}REDACTED"},
}

// Redact takes the secrets out.
func Redact(text []byte) []byte {
	for _, s := range secrets {
		text = s.find.ReplaceAll(text, []byte(s.replace))
	}
	return text
}
