package localpg

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	embedded "github.com/fergusstrange/embedded-postgres"
)

// newest is the major version that Config.Version "newest" stands for.
const newest = 18

// fetchable are the versions that can be fetched, by major version.
var fetchable = map[int]embedded.PostgresVersion{
	14: embedded.V14,
	15: embedded.V15,
	16: embedded.V16,
	17: embedded.V17,
	18: embedded.V18,
}

// clusterDirs is where Debian's packages keep the configuration of the clusters
// that they make when they are installed.
const clusterDirs = "/etc/postgresql/*/main"

// aptInstall installs a package of a Debian-like system. The service that the
// package starts is stopped: we run our own server on our own directory and port.
func aptInstall(ctx context.Context, cfg Config, pkg string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return errors.New("there is no apt-get")
	}
	var sudo []string
	if os.Geteuid() != 0 {
		if err := exec.CommandContext(ctx, "sudo", "-n", "true").Run(); err != nil {
			return errors.New("apt-get needs root, or sudo without a password")
		}
		sudo = []string{"sudo", "-n"}
	}
	root := func(args ...string) error {
		args = append(slices.Clone(sudo), args...)
		cmd := exec.CommandContext(ctx, args[0], args[1:]...)
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		// A package manager that is killed leaves packages half configured.
		cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGINT) }
		// A service may keep the output open.
		cmd.WaitDelay = 10 * time.Second
		err := cmd.Run()
		if err != nil && !errors.Is(err, exec.ErrWaitDelay) {
			line := strings.TrimSpace(out.String())
			line = line[strings.LastIndexByte(line, '\n')+1:]
			return fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, line)
		}
		return nil
	}
	fmt.Fprintf(cfg.Progress, "installing the package %s with apt-get\n", pkg)
	cfg.Log.InfoContext(ctx, "installing package", "package", pkg)
	before, _ := filepath.Glob(clusterDirs)
	apt := []string{"env", "DEBIAN_FRONTEND=noninteractive", "apt-get", "-qq", "-o", "DPkg::Lock::Timeout=300"}
	install := append(slices.Clone(apt), "install", "-y", "--no-install-recommends", pkg)
	if root(install...) != nil {
		// Mostly the package lists are missing or old.
		if err := root(append(apt, "update")...); err != nil {
			return err
		}
		if err := root(install...); err != nil {
			return err
		}
	}
	// Failures to stop a service are harmless.
	if pkg == "pgbouncer" {
		_ = root("service", "pgbouncer", "stop")
	}
	after, _ := filepath.Glob(clusterDirs)
	for _, dir := range after {
		if !slices.Contains(before, dir) {
			_ = root("pg_ctlcluster", filepath.Base(filepath.Dir(dir)), "main", "stop")
		}
	}
	return nil
}

// fetchDir is where a fetched version is kept.
func fetchDir(cache string, version embedded.PostgresVersion) string {
	return filepath.Join(cache, "postgres-"+string(version))
}

// fetched returns the version in the cache, for 0 the newest one there.
func fetched(ctx context.Context, major int, cache string, id identity) (installation, bool) {
	for m := newest; m >= oldest; m-- {
		if major != 0 && m != major {
			continue
		}
		if i, err := inspect(ctx, filepath.Join(fetchDir(cache, fetchable[m]), "bin"), id); err == nil {
			return i, true
		}
	}
	return installation{}, false
}

// fetch gets a version into the cache. The caller holds the lock for installing.
//
// The library would also run the server, as root it could not: it is used only
// for the programs that it unpacks before.
func fetch(ctx context.Context, cfg Config, major int, cache string, id identity) (installation, error) {
	if major == 0 {
		major = newest
	}
	version, ok := fetchable[major]
	if !ok {
		return installation{}, fmt.Errorf("PostgreSQL %d cannot be fetched", major)
	}
	fmt.Fprintf(cfg.Progress, "fetching PostgreSQL %s\n", version)
	cfg.Log.InfoContext(ctx, "fetching postgresql", "version", string(version))
	dir := fetchDir(cache, version)
	work := dir + ".new"
	if err := os.RemoveAll(work); err != nil {
		return installation{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	defer os.RemoveAll(work)
	port, err := freePort()
	if err != nil {
		return installation{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	unpacked := filepath.Join(work, "postgres")
	server := embedded.NewDatabase(embedded.DefaultConfig().
		Version(version).
		Port(uint32(port)).
		CachePath(filepath.Join(work, "archive")).
		BinariesPath(unpacked).
		RuntimePath(filepath.Join(work, "runtime")).
		Logger(io.Discard))
	startErr := server.Start()
	// The library leaves its connection, and with it goroutines, to the default client.
	http.DefaultClient.CloseIdleConnections()
	if startErr == nil {
		if err := server.Stop(); err != nil {
			return installation{}, fmt.Errorf("fetch PostgreSQL: %w", err)
		}
	}
	if _, err := os.Stat(filepath.Join(unpacked, "bin", "postgres")); err != nil {
		return installation{}, fmt.Errorf("fetch PostgreSQL: %w", errors.Join(startErr, err))
	}
	if err := openTree(unpacked); err != nil {
		return installation{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	if err := os.RemoveAll(dir); err != nil {
		return installation{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	if err := os.Rename(unpacked, dir); err != nil {
		return installation{}, fmt.Errorf("fetch PostgreSQL: %w", err)
	}
	i, err := inspect(ctx, filepath.Join(dir, "bin"), id)
	if err != nil {
		return installation{}, fmt.Errorf("fetched PostgreSQL does not run: %w", err)
	}
	return i, nil
}

// openTree lets everybody read what the umask may have closed.
func openTree(dir string) error {
	return filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		fi, err := d.Info()
		if err != nil {
			return err
		}
		mode := fi.Mode().Perm()
		switch {
		case d.IsDir():
			mode |= 0o555
		case !d.Type().IsRegular():
			return nil
		case mode&0o100 != 0:
			mode |= 0o555
		default:
			mode |= 0o444
		}
		return os.Chmod(path, mode)
	})
}
