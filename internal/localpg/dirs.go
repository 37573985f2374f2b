package localpg

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

// ErrInUse means that another process runs the server of this data directory.
var ErrInUse = errors.New("in use by another process")

// initdbOptions make every cluster: reproducible everywhere, whatever the
// machine's locale.
var initdbOptions = []string{"--username=" + role, "--auth=trust", "--encoding=UTF8", "--locale=C", "--no-sync"}

// CacheDir returns the default cache directory and makes it: the user's cache
// directory, or where that cannot be used by the children, one of the system.
func CacheDir() (string, error) {
	id, err := runAs()
	if err != nil {
		return "", err
	}
	return cacheDir("", id)
}

func cacheDir(given string, id identity) (string, error) {
	if given != "" {
		dir, err := filepath.Abs(given)
		if err != nil {
			return "", fmt.Errorf("cache directory: %w", err)
		}
		if err := makeDir(dir, id); err != nil {
			return "", fmt.Errorf("cache directory: %w", err)
		}
		return dir, nil
	}
	var dirs []string
	if user, err := os.UserCacheDir(); err == nil {
		dirs = append(dirs, filepath.Join(user, "pith"))
	}
	if id.switched {
		dirs = append(dirs, "/var/cache/pith")
	}
	dirs = append(dirs, filepath.Join(os.TempDir(), "pith-"+strconv.Itoa(os.Geteuid())))
	var first error
	for _, dir := range dirs {
		err := makeDir(dir, id)
		if err == nil {
			return dir, nil
		}
		if first == nil {
			first = err
		}
	}
	return "", fmt.Errorf("no usable cache directory: %w", first)
}

// makeDir makes dir and what is missing above it, and checks that it is ours and
// that the identity can enter it. The umask has no say in the modes.
func makeDir(dir string, id identity) error {
	var missing []string
	for at := dir; ; at = filepath.Dir(at) {
		if _, err := os.Stat(at); err == nil {
			if err := id.canReach(at); err != nil {
				return err
			}
			break
		}
		missing = append(missing, at)
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for _, at := range missing {
		if err := os.Chmod(at, 0o755); err != nil {
			return err
		}
	}
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if st, ok := fi.Sys().(*syscall.Stat_t); ok && int(st.Uid) != os.Geteuid() {
		return fmt.Errorf("%s belongs to another user: choose another directory", dir)
	}
	return id.canReach(dir)
}

// tryLock takes the lock file at path, or fails with ErrInUse. unlock releases it,
// and so does our death.
func tryLock(path string) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o644)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		_ = f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, ErrInUse
		}
		return nil, &fs.PathError{Op: "lock", Path: path, Err: err}
	}
	return f, nil
}

// unlock releases a lock file. Closing alone leaves it locked for as long as a child holds it that another
// goroutine has forked, and that has not begun its program yet.
func unlock(f *os.File) error {
	err := syscall.Flock(int(f.Fd()), syscall.LOCK_UN)
	return errors.Join(err, f.Close())
}

// lock takes the lock file at path, waiting for it if need be.
func lock(ctx context.Context, path string) (*os.File, error) {
	for {
		f, err := tryLock(path)
		if !errors.Is(err, ErrInUse) {
			return f, err
		}
		timer := time.NewTimer(20 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return nil, fmt.Errorf("wait for %s: %w", path, context.Cause(ctx))
		case <-timer.C:
		}
	}
}

// A home is the directory of one server: its lock, its log, its pooler's files,
// and the data directory below it.
type home struct {
	dir       string
	lock      *os.File
	ephemeral bool
}

func (h *home) data() string { return filepath.Join(h.dir, "data") }

// persistentHome opens dir for a server that keeps its data.
func persistentHome(dir string, id identity) (*home, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	if err := makeDir(dir, id); err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	f, err := tryLock(filepath.Join(dir, "lock"))
	if errors.Is(err, ErrInUse) {
		return nil, fmt.Errorf("data directory %s is %w: stop it, or choose another directory", dir, err)
	}
	if err != nil {
		return nil, fmt.Errorf("data directory: %w", err)
	}
	return &home{dir: dir, lock: f}, nil
}

// ephemeralHome makes a directory that goes with its server, and removes those
// whose process was killed before it could.
func ephemeralHome(ctx context.Context, run string, id identity) (*home, error) {
	run, err := filepath.Abs(run)
	if err != nil {
		return nil, fmt.Errorf("directory for servers: %w", err)
	}
	if err := makeDir(run, id); err != nil {
		return nil, fmt.Errorf("directory for servers: %w", err)
	}
	// Under this lock a directory without a taken lock is a dead one.
	guard, err := lock(ctx, filepath.Join(run, ".lock"))
	if err != nil {
		return nil, fmt.Errorf("directory for servers: %w", err)
	}
	defer guard.Close()
	sweep(run)
	dir, err := os.MkdirTemp(run, "pg-")
	if err != nil {
		return nil, fmt.Errorf("directory for servers: %w", err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		return nil, fmt.Errorf("directory for servers: %w", err)
	}
	f, err := tryLock(filepath.Join(dir, "lock"))
	if err != nil {
		return nil, fmt.Errorf("directory for servers: %w", err)
	}
	return &home{dir: dir, lock: f, ephemeral: true}, nil
}

// sweep removes what killed processes left in run. What cannot be removed now is
// left to the next one.
func sweep(run string) {
	entries, err := os.ReadDir(run)
	if err != nil {
		return
	}
	for _, e := range entries {
		dead := &home{dir: filepath.Join(run, e.Name()), ephemeral: true}
		if dead.lock, err = tryLock(filepath.Join(dead.dir, "lock")); err != nil {
			continue
		}
		if pid, is := postmaster(dead.data()); is == alive {
			_ = syscall.Kill(pid, syscall.SIGQUIT)
			_ = unlock(dead.lock)
			continue
		}
		_ = dead.close()
	}
}

// close releases the home, and removes it where it is ephemeral.
func (h *home) close() error {
	var err error
	if h.ephemeral {
		err = os.RemoveAll(h.dir)
	}
	return errors.Join(err, unlock(h.lock))
}

// major returns the major version that made the data, 0 if there is none yet.
func (h *home) major() int {
	b, err := os.ReadFile(filepath.Join(h.data(), "PG_VERSION"))
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(b)))
	return n
}

// prepare makes the data directory ready for a start: a copy of the template if
// there is none, and no remains of a postmaster.
func (h *home) prepare(ctx context.Context, cache string, pg installation, id identity) error {
	if h.major() != 0 {
		if err := chownTree(h.data(), id); err != nil {
			return fmt.Errorf("take over data directory %s: %w", h.data(), err)
		}
		return h.clearStale(ctx)
	}
	tmpl, err := template(ctx, cache, pg, id)
	if err != nil {
		return err
	}
	if h.ephemeral {
		if err := copyTree(h.data(), tmpl, id); err != nil {
			return fmt.Errorf("copy template cluster: %w", err)
		}
		return nil
	}
	// A crash before the rename leaves a directory that is not the data directory
	// yet; the next start begins anew.
	fresh := filepath.Join(h.dir, "data.new")
	if err := os.RemoveAll(fresh); err != nil {
		return fmt.Errorf("copy template cluster: %w", err)
	}
	if err := copyTree(fresh, tmpl, id); err != nil {
		return fmt.Errorf("copy template cluster: %w", err)
	}
	cmd := exec.Command(pg.program("initdb"), "--sync-only", "-D", fresh)
	cmd.Dir = h.dir
	if err := runOnce(ctx, cmd, id); err != nil {
		return fmt.Errorf("flush new cluster: %w", err)
	}
	if err := os.Rename(fresh, h.data()); err != nil {
		return fmt.Errorf("copy template cluster: %w", err)
	}
	return nil
}

// clearStale deals with the pid file of a postmaster whose process was killed.
//
// The postmaster ends by itself, on Linux, so this mostly waits for that. If the
// number belongs to some other program by now, the file would block the start and
// is removed. Everything else PostgreSQL judges by itself.
func (h *home) clearStale(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, 20*time.Second)
	defer cancel()
	for signaled := false; ; {
		pid, is := postmaster(h.data())
		switch is {
		case foreign:
			if err := os.Remove(filepath.Join(h.data(), "postmaster.pid")); err != nil && !errors.Is(err, fs.ErrNotExist) {
				return fmt.Errorf("remove stale pid file: %w", err)
			}
			return nil
		case gone, unknown:
			return nil
		case alive:
		}
		if !signaled {
			_ = syscall.Kill(pid, syscall.SIGINT)
			signaled = true
		}
		timer := time.NewTimer(10 * time.Millisecond)
		select {
		case <-ctx.Done():
			timer.Stop()
			return fmt.Errorf("data directory %s is %w: end process %d", h.dir, ErrInUse, pid)
		case <-timer.C:
		}
	}
}

// A holder is what the process named in a pid file turns out to be.
type holder int

const (
	gone    holder = iota // no process
	alive                 // the postmaster of the directory
	foreign               // another program of the same user
	unknown               // a process that we may not look into
)

// postmaster tells what runs under the number in a data directory's pid file.
func postmaster(data string) (pid int, is holder) {
	b, err := os.ReadFile(filepath.Join(data, "postmaster.pid"))
	if err != nil {
		return 0, gone
	}
	line, _, _ := strings.Cut(string(b), "\n")
	pid, err = strconv.Atoi(strings.TrimSpace(line))
	if err != nil || pid <= 1 {
		return 0, unknown
	}
	switch err := syscall.Kill(pid, 0); {
	case errors.Is(err, syscall.ESRCH):
		return pid, gone
	case err != nil:
		return pid, unknown
	}
	if _, err := os.Stat("/proc/self/cwd"); err == nil {
		// A postmaster's working directory is its data directory.
		cwd, err := os.Stat(filepath.Join("/proc", strconv.Itoa(pid), "cwd"))
		if errors.Is(err, fs.ErrNotExist) {
			return pid, gone
		}
		own, ownErr := os.Stat(data)
		switch {
		case err != nil || ownErr != nil:
			return pid, unknown
		case os.SameFile(cwd, own):
			return pid, alive
		}
		return pid, foreign
	}
	out, err := exec.Command("ps", "-p", strconv.Itoa(pid), "-o", "command=").Output()
	switch {
	case err != nil:
		return pid, unknown
	case strings.Contains(string(out), data):
		return pid, alive
	}
	return pid, foreign
}

// template returns a fresh cluster, stopped, that is never changed again. It is
// kept in the cache for each version, set of options, and owner.
func template(ctx context.Context, cache string, pg installation, id identity) (string, error) {
	sum := sha256.Sum256([]byte(strings.Join(append([]string{pg.bin, strconv.Itoa(id.uid)}, initdbOptions...), "\x00")))
	dir := filepath.Join(cache, fmt.Sprintf("template-%s-%x", pg.version, sum[:4]))
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	f, err := lock(ctx, dir+".lock")
	if err != nil {
		return "", fmt.Errorf("make template cluster: %w", err)
	}
	defer f.Close()
	if _, err := os.Stat(dir); err == nil {
		return dir, nil
	}
	fresh := dir + ".new"
	if err := os.RemoveAll(fresh); err != nil {
		return "", fmt.Errorf("make template cluster: %w", err)
	}
	if err := os.Mkdir(fresh, 0o700); err != nil {
		return "", fmt.Errorf("make template cluster: %w", err)
	}
	if err := id.own(fresh); err != nil {
		return "", fmt.Errorf("make template cluster: %w", err)
	}
	cmd := exec.Command(pg.program("initdb"), append(initdbOptions, "-D", fresh)...)
	cmd.Dir = cache
	if err := runOnce(ctx, cmd, id); err != nil {
		return "", fmt.Errorf("make template cluster: %w", err)
	}
	if err := os.Rename(fresh, dir); err != nil {
		return "", fmt.Errorf("make template cluster: %w", err)
	}
	return dir, nil
}

// copyTree copies directories and regular files, modes included, and hands the
// copy to id.
func copyTree(dst, src string, id identity) error {
	return filepath.WalkDir(src, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(src, path)
		if err != nil {
			return err
		}
		to := filepath.Join(dst, rel)
		switch {
		case d.IsDir():
			if err := os.Mkdir(to, 0o700); err != nil {
				return err
			}
		case d.Type().IsRegular():
			if err := copyFile(to, path); err != nil {
				return err
			}
		default:
			return fmt.Errorf("%s is neither a file nor a directory", path)
		}
		return id.own(to)
	})
}

func copyFile(dst, src string) (err error) {
	in, err := os.Open(src)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, out.Close()) }()
	_, err = io.Copy(out, in)
	return err
}

// chownTree hands a data directory to id where it belongs to someone else, which
// happens when the user postgres was added in the meantime.
func chownTree(dir string, id identity) error {
	fi, err := os.Stat(dir)
	if err != nil {
		return err
	}
	st, ok := fi.Sys().(*syscall.Stat_t)
	if !id.switched || !ok || int(st.Uid) == id.uid {
		return nil
	}
	return filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		return id.own(path)
	})
}
