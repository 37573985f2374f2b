package isolate

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"sync"
	"syscall"
	"time"
)

// workDir is where the jobs' directories of one process are. It is locked while that process lives, so that
// another can tell what was left behind.
type workDir struct {
	base string

	mu   sync.Mutex
	dir  string // "": not made yet
	lock *os.File
	last int

	closed bool
}

const workPrefix = "pith-work-"

// make makes a directory for a job.
func (w *workDir) make(name string) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.closed {
		return "", errClosed
	}
	if w.dir == "" {
		w.sweep()
		dir, err := os.MkdirTemp(w.base, workPrefix)
		if err != nil {
			return "", err
		}
		if w.lock, err = lockDir(dir); err != nil {
			return "", errors.Join(err, os.Remove(dir))
		}
		w.dir = dir
	}
	w.last++
	dir := fmt.Sprintf("%s/%s-%d", w.dir, name, w.last)
	return dir, os.Mkdir(dir, 0o700)
}

func lockDir(dir string) (*os.File, error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		return nil, errors.Join(fmt.Errorf("lock %s: %w", dir, err), f.Close())
	}
	return f, nil
}

// sweep removes what processes have left behind that were killed. What cannot be removed is another user's.
func (w *workDir) sweep() {
	entries, err := os.ReadDir(w.base)
	if err != nil {
		return
	}
	for _, e := range entries {
		if !e.IsDir() || !strings.HasPrefix(e.Name(), workPrefix) {
			continue
		}
		dir := w.base + "/" + e.Name()
		info, err := e.Info()
		if err != nil || time.Since(info.ModTime()) < time.Minute { // it may be about to be locked
			continue
		}
		if f, err := lockDir(dir); err == nil {
			removeAll(dir)
			_ = f.Close()
		}
	}
}

// remove removes a job's directory.
func (w *workDir) remove(dir string) { removeAll(dir) }

// removeAll removes a tree, also where its directories were made read-only. What it cannot remove is left to the
// administrator.
func removeAll(dir string) {
	if os.RemoveAll(dir) == nil {
		return
	}
	makeWritable(dir)
	_ = os.RemoveAll(dir)
}

func makeWritable(dir string) {
	_ = os.Chmod(dir, 0o700)
	entries, err := os.ReadDir(dir)
	if err != nil {
		return
	}
	for _, e := range entries {
		if e.IsDir() {
			makeWritable(dir + "/" + e.Name())
		}
	}
}

func (w *workDir) close() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.closed = true
	if w.dir != "" {
		removeAll(w.dir)
		_ = w.lock.Close()
		w.dir = ""
	}
}
