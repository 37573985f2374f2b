package localpg

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
)

// oldest is the first major version that we support.
const oldest = 14

// An installation is a set of PostgreSQL's programs.
type installation struct {
	bin     string // directory of the programs
	version string // such as 15.18
	major   int
}

func (i installation) program(name string) string { return filepath.Join(i.bin, name) }

// binDirs are where systems keep PostgreSQL outside of PATH.
var binDirs = []string{
	"/usr/lib/postgresql/*/bin",
	"/usr/lib64/postgresql*/bin",
	"/usr/pgsql-*/bin",
	"/usr/libexec/postgresql*",
	"/usr/local/pgsql/bin",
	"/opt/homebrew/opt/postgresql*/bin",
	"/usr/local/opt/postgresql*/bin",
	"/Applications/Postgres.app/Contents/Versions/*/bin",
}

// ErrNoPgBouncer means that there is no PgBouncer here, and that none could be installed.
var ErrNoPgBouncer = errors.New("PgBouncer is not installed")

// sbinDirs are where pgbouncer may be outside of PATH.
var sbinDirs = []string{"/usr/sbin", "/usr/bin", "/usr/local/sbin", "/usr/local/bin", "/opt/homebrew/bin"}

// installed returns the system's installation of the major version, or for 0 the
// one on PATH, or else the newest. ok is false if there is none.
func installed(ctx context.Context, major int, id identity) (best installation, ok bool) {
	if path, err := exec.LookPath("postgres"); err == nil {
		if real, err := filepath.EvalSymlinks(path); err == nil {
			if i, err := inspect(ctx, filepath.Dir(real), id); err == nil && (major == 0 || i.major == major) {
				return i, true
			}
		}
	}
	for _, pattern := range binDirs {
		dirs, _ := filepath.Glob(pattern)
		for _, dir := range dirs {
			i, err := inspect(ctx, dir, id)
			if err != nil || major != 0 && i.major != major {
				continue
			}
			if i.major > best.major {
				best = i
			}
		}
	}
	return best, best.major != 0
}

// inspect looks whether a directory holds a server that id can run.
func inspect(ctx context.Context, dir string, id identity) (installation, error) {
	i := installation{bin: dir}
	if err := id.canReach(dir); err != nil {
		return i, err
	}
	if _, err := os.Stat(i.program("initdb")); err != nil {
		return i, err
	}
	version, major, _, err := versionOf(ctx, i.program("postgres"))
	if err != nil {
		return i, err
	}
	if major < oldest {
		return i, fmt.Errorf("PostgreSQL %s in %s is too old: %d is needed", version, dir, oldest)
	}
	i.version, i.major = version, major
	return i, nil
}

var versionPattern = regexp.MustCompile(`(?:\(PostgreSQL\)|PgBouncer) ((\d+)(?:\.(\d+))?\S*)`)

// versionOf asks a program for its version.
func versionOf(ctx context.Context, program string) (version string, major, minor int, err error) {
	out, err := exec.CommandContext(ctx, program, "--version").Output()
	if err != nil {
		return "", 0, 0, fmt.Errorf("run %s: %w", program, err)
	}
	return parseVersion(string(out))
}

func parseVersion(out string) (version string, major, minor int, err error) {
	m := versionPattern.FindStringSubmatch(out)
	if m == nil {
		return "", 0, 0, fmt.Errorf("unknown version %q", out)
	}
	major, err = strconv.Atoi(m[2])
	if err != nil {
		return "", 0, 0, fmt.Errorf("unknown version %q", out)
	}
	if m[3] != "" {
		if minor, err = strconv.Atoi(m[3]); err != nil {
			return "", 0, 0, fmt.Errorf("unknown version %q", out)
		}
	}
	return m[1], major, minor, nil
}

// findPostgres returns an installation of the wanted major version (0: any),
// and gets one where there is none.
func findPostgres(ctx context.Context, cfg Config, major int, cache string, id identity) (installation, error) {
	found := func() (installation, bool) {
		if i, ok := installed(ctx, major, id); ok {
			return i, true
		}
		return fetched(ctx, major, cache, id)
	}
	if i, ok := found(); ok {
		return i, nil
	}
	name := "PostgreSQL"
	if major != 0 {
		name += " " + strconv.Itoa(major)
	}
	if cfg.NoInstall {
		return installation{}, fmt.Errorf("%s is not installed: install it, and put its programs on PATH", name)
	}
	// Another process may be getting it right now.
	f, err := lock(ctx, filepath.Join(cache, "install.lock"))
	if err != nil {
		return installation{}, fmt.Errorf("install %s: %w", name, err)
	}
	defer f.Close()
	if i, ok := found(); ok {
		return i, nil
	}
	var aptErr error
	if major == 0 {
		if aptErr = aptInstall(ctx, cfg, "postgresql"); aptErr == nil {
			if i, ok := found(); ok {
				return i, nil
			}
			aptErr = errors.New("the package postgresql has no server that can be run")
		}
	}
	i, err := fetch(ctx, cfg, major, cache, id)
	if err != nil {
		if aptErr != nil {
			err = fmt.Errorf("%w; %w", aptErr, err)
		}
		return installation{}, fmt.Errorf("%s is not installed and cannot be had (%w): install it, and put its programs on PATH", name, err)
	}
	return i, nil
}

// A pooler is a PgBouncer program.
type pooler struct {
	path         string
	major, minor int
}

// atLeast tells whether the version is major.minor or newer.
func (p pooler) atLeast(major, minor int) bool {
	return p.major > major || p.major == major && p.minor >= minor
}

// findBouncer returns the system's PgBouncer, and installs it where there is none.
func findBouncer(ctx context.Context, cfg Config, cache string) (pooler, error) {
	found := func() (pooler, bool) {
		paths := make([]string, 0, 1+len(sbinDirs))
		if path, err := exec.LookPath("pgbouncer"); err == nil {
			paths = append(paths, path)
		}
		for _, dir := range sbinDirs {
			paths = append(paths, filepath.Join(dir, "pgbouncer"))
		}
		for _, path := range paths {
			if _, major, minor, err := versionOf(ctx, path); err == nil {
				return pooler{path, major, minor}, true
			}
		}
		return pooler{}, false
	}
	if p, ok := found(); ok {
		return p, nil
	}
	err := errors.New("not on PATH")
	if !cfg.NoInstall {
		var f *os.File
		if f, err = lock(ctx, filepath.Join(cache, "install.lock")); err != nil {
			return pooler{}, fmt.Errorf("install PgBouncer: %w", err)
		}
		defer f.Close()
		if err = aptInstall(ctx, cfg, "pgbouncer"); err == nil {
			if p, ok := found(); ok {
				return p, nil
			}
			err = errors.New("the package pgbouncer has no program that can be run")
		}
	}
	return pooler{}, fmt.Errorf("%w (%w): install the package pgbouncer", ErrNoPgBouncer, err)
}
