package doctor

import (
	"encoding/json"
	"encoding/xml"
	"fmt"
	"io"
	"text/tabwriter"
)

// Formats are the forms in which a report is told.
var Formats = []string{"text", "json", "junit"}

// Write writes a report in a format.
func (r Report) Write(out io.Writer, format string) error {
	switch format {
	case "json":
		return json.NewEncoder(out).Encode(r)
	case "junit":
		return r.junit(out)
	}
	return r.text(out)
}

// text is for people: a line a check, and at the end once more what is not well.
func (r Report) text(out io.Writer) error {
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	var wrong []Finding
	for _, f := range r.Checks {
		fmt.Fprintf(table, "%s\t%s\t%s\n", f.Status, f.ID, f.Found)
		if f.Fix != "" {
			fmt.Fprintf(table, "\t\t→ %s\n", f.Fix)
		}
		if weight[f.Status] > 0 {
			wrong = append(wrong, f)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	if len(wrong) > 0 && len(r.Checks) > len(wrong) {
		for _, f := range wrong {
			fmt.Fprintf(out, "%s: %s\n", f.ID, f.Found)
		}
	}
	_, err := fmt.Fprintf(out, "%s%s\n", r.Worst, mark(r.Simulated))
	return err
}

type junitSuite struct {
	XMLName  xml.Name    `xml:"testsuite"`
	Name     string      `xml:"name,attr"`
	Hostname string      `xml:"hostname,attr"`
	Tests    int         `xml:"tests,attr"`
	Failures int         `xml:"failures,attr"`
	Errors   int         `xml:"errors,attr"`
	Skipped  int         `xml:"skipped,attr"`
	Time     string      `xml:"time,attr"`
	Cases    []junitCase `xml:"testcase"`
}

type junitCase struct {
	Class   string        `xml:"classname,attr"`
	Name    string        `xml:"name,attr"`
	Time    string        `xml:"time,attr"`
	Failure *junitMessage `xml:"failure"`
	Error   *junitMessage `xml:"error"`
	Skipped *junitMessage `xml:"skipped"`
	Out     string        `xml:"system-out,omitempty"`
}

type junitMessage struct {
	Message string `xml:"message,attr"`
	Type    string `xml:"type,attr,omitempty"`
}

// junit is for CI systems: CRIT and WARN are failures, UNKNOWN is an error.
func (r Report) junit(out io.Writer) error {
	s := junitSuite{Name: r.Schema, Hostname: r.Node, Tests: len(r.Checks), Time: fmt.Sprintf("%.3f", r.Duration)}
	for _, f := range r.Checks {
		c := junitCase{Class: f.Group, Name: f.ID, Time: fmt.Sprintf("%.3f", f.Duration)}
		message := &junitMessage{Message: f.Found, Type: string(f.Status)}
		if f.Fix != "" {
			message.Message += "; " + f.Fix
		}
		switch f.Status {
		case Crit, Warn:
			c.Failure, s.Failures = message, s.Failures+1
		case Unknown:
			c.Error, s.Errors = message, s.Errors+1
		case Skip:
			c.Skipped, s.Skipped = &junitMessage{Message: f.Found}, s.Skipped+1
		default:
			c.Out = f.Found
		}
		s.Cases = append(s.Cases, c)
	}
	if _, err := io.WriteString(out, xml.Header); err != nil {
		return err
	}
	encoder := xml.NewEncoder(out)
	encoder.Indent("", "  ")
	if err := encoder.Encode(s); err != nil {
		return err
	}
	_, err := io.WriteString(out, "\n")
	return err
}
