// Package imports tests who may import whom.
//
// The rules stand in the tables below. A rule that names a package which does not
// exist fails too, so that no rule survives a rename without its subject.
package imports

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

const module = "github.com/pithworks/pith"

// A pattern names packages as on go list's command line: "./worker" is one of this
// module, a trailing "/..." takes in everything below.
type pattern = string

// apart lists what a package must not reach, by any path of imports.
var apart = []struct {
	who   pattern
	never []pattern
}{
	{"./worker", []pattern{"./api", "./content", "./internal/pinning"}},
	{"./tasking", []pattern{"./worker", "./api", "./content", "./internal/pinning"}},
}

// within lists the packages that use no more of this module than is said here.
var within = []struct {
	who pattern
	may []pattern
}{
	{"./db", nil},
	{"./sql/schema", nil},
	{"./app_status", []pattern{"./db", "./pool", "./internal/pacing", "./internal/resend"}},
	{"./pool", nil},
	{"./internal/filter", nil},
	{"./internal/resend", nil},
	{"./internal/textwire", nil},
	{"./internal/isolate", nil},
	{"./internal/pacing", []pattern{"./internal/resend"}},
	{"./internal/pinning", nil},
	{"./internal/rdsproxy", []pattern{"./internal/pinning"}},
	{"./internal/workload", []pattern{"./db", "./app_status", "./tasking", "./worker", "./internal/resend"}},
	{"./api", []pattern{"./db", "./app_status", "./tasking", "./internal/builtin", "./internal/filter", "./internal/resend"}},
	{"./internal/doctor", []pattern{"./db", "./pool", "./tasking", "./internal/migrate"}},
}

// reserved lists what only some packages may import.
var reserved = []struct {
	what pattern
	by   []pattern
	// tests may import it whatever package they test
	tests bool
}{
	{what: "./cmd/..."},
	{what: "./internal/localpg", by: []pattern{"./cmd/...", "./internal/demo", "./internal/dbtest"}, tests: true},
	{what: "./internal/dbtest", by: []pattern{"./cmd/...", "./internal/demo"}, tests: true},
	{what: "./internal/pinning", by: []pattern{"./internal/rdsproxy", "./internal/dbtest"}, tests: true},
	{what: "./internal/isolate", by: []pattern{"./tasking", "./worker"}, tests: true},
	{what: "./internal/workload", by: []pattern{"./cmd/..."}},
	{what: "./internal/rdsproxy", by: []pattern{"./cmd/...", "./internal/demo", "./internal/dbtest"}, tests: true},
	{what: "github.com/wasilibs/go-pgquery/...", by: []pattern{"./internal/pinning"}},
	{what: "github.com/xdg-go/scram/...", by: []pattern{"./internal/rdsproxy"}},
	{what: "github.com/pressly/goose/v3/...", by: []pattern{"./internal/migrate"}},
	{what: "github.com/lmittmann/tint/...", by: []pattern{"./cmd/..."}},
	{what: "github.com/getkin/kin-openapi/...", by: []pattern{"./api"}},
	{what: "go.opentelemetry.io/otel/metric/...", by: []pattern{"./api", "./worker", "./cmd/..."}},
	{what: "go.opentelemetry.io/otel/sdk/...", by: []pattern{"./cmd/..."}, tests: true},
	{what: "go.opentelemetry.io/otel/exporters/...", by: []pattern{"./cmd/..."}},
	{what: "go.opentelemetry.io/proto/otlp/...", tests: true},
	{what: "github.com/go-logr/logr/...", by: []pattern{"./cmd/..."}},
	{what: "golang.org/x/crypto/...", by: []pattern{"./api"}},
	{what: "github.com/alecthomas/kong/...", by: []pattern{"./cmd/..."}},
	{what: "github.com/fergusstrange/embedded-postgres/...", by: []pattern{"./internal/localpg"}},
	{what: "testing/...", by: []pattern{"./internal/dbtest"}, tests: true},
	{what: "github.com/google/go-cmp/...", by: []pattern{"./internal/dbtest"}, tests: true},
	{what: "go.uber.org/goleak/...", by: []pattern{"./internal/dbtest"}, tests: true},
}

// planned are the packages that the rules name before they exist.
var planned = []pattern{"./content"}

// A pkg is what go list tells of a package.
type pkg struct {
	ImportPath   string
	Imports      []string
	TestImports  []string
	XTestImports []string
}

func (p pkg) testImports() []string {
	all := slices.Concat(p.TestImports, p.XTestImports)
	slices.Sort(all)
	return slices.Compact(all)
}

func TestImportsFollowTheRules(t *testing.T) {
	t.Parallel()
	for _, v := range violations(list(t)) {
		t.Error(v)
	}
}

func TestRulesNamePackagesThatExist(t *testing.T) {
	t.Parallel()
	for _, v := range unknown(list(t)) {
		t.Error(v)
	}
}

// list returns the packages of the module.
func list(t *testing.T) []pkg {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "go", "list", "-json=ImportPath,Imports,TestImports,XTestImports", module+"/...")
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("go list: %v\n%s", err, &stderr)
	}
	var pkgs []pkg
	for d := json.NewDecoder(bytes.NewReader(out)); ; {
		var p pkg
		if err := d.Decode(&p); errors.Is(err, io.EOF) {
			break
		} else if err != nil {
			t.Fatalf("decode go list: %v", err)
		}
		pkgs = append(pkgs, p)
	}
	if len(pkgs) == 0 {
		t.Fatal("go list found no package")
	}
	return pkgs
}

// violations says what in the import graph breaks a rule, sorted.
func violations(pkgs []pkg) []string {
	var found []string
	for _, p := range pkgs {
		for _, rule := range apart {
			if !match(rule.who, p.ImportPath) {
				continue
			}
			for _, path := range reached(p.ImportPath, pkgs) {
				if matchAny(rule.never, path[len(path)-1]) {
					found = append(found, "must not reach: "+arrows(path))
				}
			}
		}
		for _, rule := range within {
			if !match(rule.who, p.ImportPath) {
				continue
			}
			for _, i := range p.Imports {
				if inModule(i) && !matchAny(rule.may, i) {
					found = append(found, "must not import: "+arrows([]string{p.ImportPath, i}))
				}
			}
		}
		for _, rule := range reserved {
			if matchAny(rule.by, p.ImportPath) || match(rule.what, p.ImportPath) {
				continue
			}
			for _, i := range p.Imports {
				if match(rule.what, i) {
					found = append(found, "is reserved: "+arrows([]string{p.ImportPath, i}))
				}
			}
			if rule.tests {
				continue
			}
			for _, i := range p.testImports() {
				if match(rule.what, i) {
					found = append(found, "is reserved: "+arrows([]string{p.ImportPath + " (test)", i}))
				}
			}
		}
	}
	slices.Sort(found)
	return found
}

// reached returns a shortest path of imports from a package to each that it reaches,
// itself not included.
func reached(from string, pkgs []pkg) [][]string {
	imports := map[string][]string{}
	for _, p := range pkgs {
		imports[p.ImportPath] = p.Imports
	}
	seen := map[string]bool{from: true}
	var paths [][]string
	for queue := [][]string{{from}}; len(queue) > 0; queue = queue[1:] {
		path := queue[0]
		for _, i := range imports[path[len(path)-1]] {
			if seen[i] {
				continue
			}
			seen[i] = true
			next := append(slices.Clone(path), i)
			paths = append(paths, next)
			queue = append(queue, next)
		}
	}
	return paths
}

// unknown says which packages the rules name in vain, and which planned ones exist by now.
func unknown(pkgs []pkg) []string {
	var named []pattern
	for _, rule := range apart {
		named = append(named, rule.who)
		named = append(named, rule.never...)
	}
	for _, rule := range within {
		named = append(named, rule.who)
		named = append(named, rule.may...)
	}
	for _, rule := range reserved {
		named = append(named, rule.what)
		named = append(named, rule.by...)
	}
	slices.Sort(named)
	var found []string
	for _, n := range slices.Compact(named) {
		exists := slices.ContainsFunc(pkgs, func(p pkg) bool {
			return match(n, p.ImportPath) ||
				slices.ContainsFunc(slices.Concat(p.Imports, p.testImports()), func(i string) bool { return match(n, i) })
		})
		switch {
		case !exists && !slices.Contains(planned, n):
			found = append(found, fmt.Sprintf("a rule names %s, which nothing is or imports", n))
		case exists && slices.Contains(planned, n):
			found = append(found, fmt.Sprintf("%s exists: it is planned no more", n))
		}
	}
	return found
}

func inModule(path string) bool {
	return path == module || strings.HasPrefix(path, module+"/")
}

// match tells whether an import path is one that the pattern names.
func match(p pattern, path string) bool {
	if inModule(path) {
		path = "." + strings.TrimPrefix(path, module)
	}
	base, tree := strings.CutSuffix(p, "/...")
	return path == base || tree && strings.HasPrefix(path, base+"/")
}

func matchAny(patterns []pattern, path string) bool {
	return slices.ContainsFunc(patterns, func(p pattern) bool { return match(p, path) })
}

func arrows(path []string) string {
	short := make([]string, len(path))
	for i, p := range path {
		short[i] = strings.TrimPrefix(p, module+"/")
	}
	return strings.Join(short, " -> ")
}

func TestEachKindOfViolationIsReported(t *testing.T) {
	t.Parallel()
	in := func(path string) string { return module + "/" + path }
	const (
		goose = "github.com/pressly/goose/v3"
		tint  = "github.com/lmittmann/tint"
		kong  = "github.com/alecthomas/kong"
	)
	tests := []struct {
		name string
		pkgs []pkg
		want []string
	}{
		{
			name: "allowed",
			pkgs: []pkg{
				{ImportPath: in("cmd/pith"), Imports: []string{in("worker"), in("internal/migrate"), in("internal/localpg"), in("internal/demo"), kong, tint}},
				{ImportPath: in("internal/demo"), Imports: []string{in("internal/localpg"), in("worker")}},
				{ImportPath: in("internal/dbtest"), Imports: []string{in("internal/localpg"), "testing", "go.uber.org/goleak"}},
				{ImportPath: in("internal/migrate"), Imports: []string{goose, goose + "/lock"}, XTestImports: []string{in("internal/dbtest")}},
				{ImportPath: in("worker"), Imports: []string{in("tasking"), in("app_status"), "context"}, TestImports: []string{"testing", in("internal/dbtest")}},
				{ImportPath: in("tasking"), Imports: []string{in("db")}, XTestImports: []string{in("worker"), "testing/synctest"}},
				{ImportPath: in("app_status"), Imports: []string{in("db"), "time"}},
				{ImportPath: in("db"), Imports: []string{"github.com/jackc/pgx/v5"}},
				{ImportPath: in("api"), Imports: []string{in("tasking")}},
			},
		},
		{
			name: "worker reaches the API directly",
			pkgs: []pkg{{ImportPath: in("worker"), Imports: []string{in("api")}}},
			want: []string{"must not reach: worker -> api"},
		},
		{
			name: "worker reaches the content app on a way round",
			pkgs: []pkg{
				{ImportPath: in("worker"), Imports: []string{in("internal/a"), in("internal/b")}},
				{ImportPath: in("internal/a"), Imports: []string{in("internal/b")}},
				{ImportPath: in("internal/b"), Imports: []string{in("content")}},
			},
			want: []string{"must not reach: worker -> internal/b -> content"},
		},
		{
			name: "tasking reaches the worker",
			pkgs: []pkg{{ImportPath: in("tasking"), Imports: []string{in("worker")}}},
			want: []string{"must not reach: tasking -> worker"},
		},
		{
			name: "somebody imports a command",
			pkgs: []pkg{{ImportPath: in("internal/demo"), Imports: []string{in("cmd/pith")}, TestImports: []string{in("cmd/pith/flags")}}},
			want: []string{"is reserved: internal/demo (test) -> cmd/pith/flags", "is reserved: internal/demo -> cmd/pith"},
		},
		{
			name: "db imports one of us",
			pkgs: []pkg{{ImportPath: in("db"), Imports: []string{in("app_status")}}},
			want: []string{"must not import: db -> app_status"},
		},
		{
			name: "app_status imports more than rows, pool and resend",
			pkgs: []pkg{{ImportPath: in("app_status"), Imports: []string{in("db"), in("tasking")}}},
			want: []string{"must not import: app_status -> tasking"},
		},
		{
			name: "goose outside of internal/migrate",
			pkgs: []pkg{{ImportPath: in("internal/demo"), Imports: []string{goose}, XTestImports: []string{goose + "/database"}}},
			want: []string{"is reserved: internal/demo (test) -> " + goose + "/database", "is reserved: internal/demo -> " + goose},
		},
		{
			name: "the command line's libraries outside of cmd",
			pkgs: []pkg{{ImportPath: in("worker"), Imports: []string{kong, tint}}},
			want: []string{"is reserved: worker -> " + kong, "is reserved: worker -> " + tint},
		},
		{
			name: "a database of one's own outside of tests",
			pkgs: []pkg{{ImportPath: in("worker"), Imports: []string{in("internal/dbtest"), in("internal/localpg")}}},
			want: []string{"is reserved: worker -> internal/dbtest", "is reserved: worker -> internal/localpg"},
		},
		{
			name: "testing helpers outside of tests",
			pkgs: []pkg{{ImportPath: in("tasking"), Imports: []string{"testing", "testing/fstest", "github.com/google/go-cmp/cmp", "go.uber.org/goleak"}}},
			want: []string{
				"is reserved: tasking -> github.com/google/go-cmp/cmp",
				"is reserved: tasking -> go.uber.org/goleak",
				"is reserved: tasking -> testing",
				"is reserved: tasking -> testing/fstest",
			},
		},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			if diff := cmp.Diff(tt.want, violations(tt.pkgs)); diff != "" {
				t.Errorf("violations (-want +got):\n%s", diff)
			}
		})
	}
}

func TestRuleWithoutSubjectIsReported(t *testing.T) {
	t.Parallel()
	got := unknown([]pkg{{ImportPath: module + "/worker"}, {ImportPath: module + "/content"}})
	for _, want := range []string{
		"a rule names ./tasking, which nothing is or imports",
		"./content exists: it is planned no more",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("%q is not reported", want)
		}
	}
	if unwanted := "a rule names ./worker, which nothing is or imports"; slices.Contains(got, unwanted) {
		t.Errorf("%q is reported", unwanted)
	}
}
