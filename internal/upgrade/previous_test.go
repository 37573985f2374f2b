// Package upgrade tests that the release before this one and today's code live on one database: binaries
// of both, through a migration and back, while work flows.
package upgrade

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pithworks/pith/internal/dbtest"
)

const (
	// previousRelease is the commit or the tag of the release before this one. It is moved when a release is made: see
	// docs/upgrades.md.
	previousRelease = "9ba3764de42533cc9acd58f7d5647932422447d1"

	// previousRefusesNewer tells that no command of that release starts on a newer schema. Its code runs there
	// nevertheless: see scene.blindfold. False, and to be removed with all that asks for it, from the first release on
	// that knows migrate.VersionError.Serves.
	previousRefusesNewer = true
)

// noHistory allows to go without this test where the repository's history is not there, as in an archive of it.
const noHistory = "PITH_TEST_NO_HISTORY"

func TestMain(m *testing.M) { dbtest.Main(m) }

// A program is a binary of pith.
type program struct {
	name   string // old or new
	path   string
	schema int64  // the version that it needs
	url    string // of the database, as its processes know it
}

// programs builds the binaries of the previous release and of today's code.
func programs(t *testing.T) (old, today program) {
	t.Helper()
	if os.Getenv(noHistory) != "" {
		t.Skip(noHistory + " is set: the release before this one cannot be built")
	}
	top := strings.TrimSpace(git(t, ".", "rev-parse", "--show-toplevel"))
	if _, err := gitOutput(top, "cat-file", "-e", previousRelease+"^{commit}"); err != nil {
		t.Fatalf("the previous release, %s, is not in this clone, which must have the whole history: git fetch --unshallow --tags "+
			"(with actions/checkout: fetch-depth: 0), or go without by %s=1: %v", previousRelease, noHistory, err)
	}
	source := t.TempDir()
	unpack(t, git(t, top, "archive", "--format=tar", previousRelease), source)
	bin := t.TempDir()
	return build(t, "old", source, bin), build(t, "new", top, bin)
}

func gitOutput(dir string, args ...string) (string, error) {
	cmd := exec.Command("git", append([]string{"-C", dir}, args...)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return "", errors.Join(err, errors.New(strings.TrimSpace(errOut.String())))
	}
	return out.String(), nil
}

func git(t *testing.T, dir string, args ...string) string {
	t.Helper()
	out, err := gitOutput(dir, args...)
	if err != nil {
		t.Fatalf("the previous release is built from the history of a git repository: git %s: %v", strings.Join(args, " "), err)
	}
	return out
}

func unpack(t *testing.T, archive, dir string) {
	t.Helper()
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer root.Close()
	for r := tar.NewReader(strings.NewReader(archive)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		switch h.Typeflag {
		case tar.TypeDir:
			err = root.MkdirAll(filepath.Clean(h.Name), 0o755)
		case tar.TypeReg:
			text, rerr := io.ReadAll(r)
			err = errors.Join(rerr, root.WriteFile(h.Name, text, 0o644))
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

func build(t *testing.T, name, source, bin string) program {
	t.Helper()
	p := program{name: name, path: filepath.Join(bin, name)}
	// Without paths in it, what is compiled is found in Go's cache the next time.
	cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", p.path, "./cmd/pith")
	cmd.Dir = source
	cmd.Env = append(os.Environ(), "GOWORK=off")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("build the %s binary: %v\n%s", name, err, out)
	}
	r := p.run(t, "version", "--output=json")
	var v struct{ Schema int64 }
	if err := json.Unmarshal([]byte(r.out), &v); err != nil || v.Schema == 0 {
		t.Fatalf("version of the %s binary: %v: %s", name, err, r.out)
	}
	p.schema = v.Schema
	return p
}
