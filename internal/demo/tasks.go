package demo

import (
	"bufio"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
	"strings"
	"syscall"

	"github.com/google/uuid"

	"github.com/pithworks/pith/tasking"
)

// Types returns the demo's task types, for its workers and its dispatcher.
func Types() []tasking.AnyType { return []tasking.AnyType{digestType, manifestType} }

var (
	digestType   = tasking.NewType("pith.demo.digest", digest, tasking.TypeConfig{})
	manifestType = tasking.NewType("pith.demo.manifest", manifest, tasking.TypeConfig{})
)

// progressCode marks the reports that count the bytes digested.
const progressCode = "demo.digest"

// file is a regular file as the walk found it.
type file struct {
	Path string `json:"path"` // relative to the directory, with slashes
	Size int64  `json:"size"`
}

// chunk is the work of one digest task.
type chunk struct {
	Number int    `json:"number"`
	Dir    string `json:"dir"`
	Files  []file `json:"files"`
	// Linger makes the task stop halfway and wait for the end of its worker.
	Linger bool `json:"linger,omitempty"`
}

func (c chunk) bytes() int64 {
	var n int64
	for _, f := range c.Files {
		n += f.Size
	}
	return n
}

// entry is a line of the manifest.
type entry struct {
	Path   string `json:"path"`
	SHA256 string `json:"sha256"`
	Size   int64  `json:"size"`
}

// Skipped is a file that is not in the manifest.
type Skipped struct {
	Path   string `json:"path"`
	Reason string `json:"reason"`
}

// digests are the result of a digest task.
type digests struct {
	Number  int       `json:"number"`
	Entries []entry   `json:"entries"`
	Skipped []Skipped `json:"skipped,omitempty"`
}

// digest reads a chunk of files. What cannot be read is skipped: files come and go.
func digest(ctx context.Context, run *tasking.Run, c chunk) (digests, error) {
	root, err := os.OpenRoot(c.Dir)
	if err != nil {
		return digests{}, err
	}
	defer root.Close()
	progress, err := run.Progress(ctx, "Digesting files", progressCode, c.bytes(), "")
	if err != nil {
		return digests{}, err
	}
	out := digests{Number: c.Number, Entries: []entry{}}
	for i, f := range c.Files {
		if c.Linger && i == len(c.Files)/2 {
			run.Log.Info("lingering", "worker_pid", os.Getpid())
			<-ctx.Done()
		}
		var counted int64
		sum, size, err := digestFile(ctx, root, f.Path, func(n int64) error {
			// The bar stays whole where a file has changed since the walk.
			n = min(n, f.Size-counted)
			counted += n
			return progress.Add(ctx, n)
		})
		switch {
		case ctx.Err() != nil:
			return out, context.Cause(ctx)
		case err != nil:
			if errors.Is(err, tasking.ErrLockLost) {
				return out, err
			}
			out.Skipped = append(out.Skipped, Skipped{f.Path, reason(err)})
		default:
			out.Entries = append(out.Entries, entry{f.Path, sum, size})
		}
		if err := progress.Add(ctx, f.Size-counted); err != nil {
			return out, err
		}
	}
	return out, progress.Complete(ctx)
}

// reason says why a file was skipped, without its path.
func reason(err error) string {
	if path, ok := errors.AsType[*fs.PathError](err); ok {
		err = path.Err
	}
	return err.Error()
}

var errNotRegular = errors.New("not a regular file any more")

func digestFile(ctx context.Context, root *os.Root, path string, progress func(int64) error) (sum string, size int64, err error) {
	// Without O_NONBLOCK a pipe that took the file's place would stop us.
	f, err := root.OpenFile(path, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", 0, err
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", 0, errors.Join(errNotRegular, err)
	}
	hash := sha256.New()
	buf := make([]byte, 256<<10)
	for {
		n, err := f.Read(buf)
		hash.Write(buf[:n])
		size += int64(n)
		if errors.Is(err, io.EOF) {
			return hex.EncodeToString(hash.Sum(nil)), size, nil
		}
		if err == nil {
			err = errors.Join(ctx.Err(), progress(int64(n)))
		}
		if err != nil {
			return "", 0, err
		}
	}
}

// order is the work of the manifest task.
type order struct {
	// Chunks is how many there must be.
	Chunks int `json:"chunks"`
	// Out is the manifest's path, Temp where it is written before.
	Out  string `json:"out"`
	Temp string `json:"temp"`
}

// written is the result of the manifest task.
type written struct {
	Files   int       `json:"files"`
	Bytes   int64     `json:"bytes"`
	Skipped []Skipped `json:"skipped,omitempty"`
}

// manifest writes the results of its group's digest tasks, which have all ended: it holds their
// resource exclusively, and was dispatched after them. It fails if a chunk is missing.
//
// A crash before the rename leaves the temporary file, which the demo removes, and the old manifest.
func manifest(ctx context.Context, run *tasking.Run, o order) (written, error) {
	if run.Group == nil {
		return written{}, errors.New("the manifest is made of its group's results: no group given")
	}
	entries, skipped, err := collect(ctx, run.Client(), *run.Group, o.Chunks)
	if err != nil {
		return written{}, err
	}
	out := written{Files: len(entries), Skipped: skipped}
	for _, e := range entries {
		out.Bytes += e.Size
	}
	if err := writeManifest(o.Temp, entries); err != nil {
		return written{}, err
	}
	if ctx.Err() != nil {
		return written{}, context.Cause(ctx)
	}
	return out, os.Rename(o.Temp, o.Out)
}

// page is how many tasks are read at a time.
const page = 100

// collect gathers the results of the completed digest tasks, one per chunk, sorted by path.
func collect(ctx context.Context, client *tasking.Client, group uuid.UUID, chunks int) ([]entry, []Skipped, error) {
	var entries []entry
	var skipped []Skipped
	seen := make([]bool, chunks)
	missing := chunks
	filter := tasking.Filter{Group: &group, Name: digestType.Name(), States: []tasking.State{tasking.Completed}, Limit: page}
	for {
		tasks, err := client.List(ctx, filter)
		if err != nil {
			return nil, nil, err
		}
		for _, t := range tasks {
			d, err := digestType.Result(t)
			if err != nil {
				return nil, nil, err
			}
			if d.Number < 0 || d.Number >= chunks || seen[d.Number] {
				return nil, nil, fmt.Errorf("chunk %d of task %s is not expected", d.Number, t.ID)
			}
			seen[d.Number] = true
			missing--
			entries = append(entries, d.Entries...)
			skipped = append(skipped, d.Skipped...)
		}
		if len(tasks) < page {
			break
		}
		filter.Offset += page
	}
	if missing > 0 {
		return nil, nil, fmt.Errorf("%d of %d chunks have no digests: their tasks did not complete", missing, chunks)
	}
	slices.SortFunc(entries, func(a, b entry) int { return strings.Compare(a.Path, b.Path) })
	slices.SortFunc(skipped, func(a, b Skipped) int { return strings.Compare(a.Path, b.Path) })
	return entries, skipped, nil
}

// writeManifest writes the lines as Pulp does: a comma in a path stays as it is, for the digest and
// the size are the last two fields.
func writeManifest(path string, entries []entry) (err error) {
	f, err := os.OpenFile(path, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := bufio.NewWriter(f)
	for _, e := range entries {
		if _, err := fmt.Fprintf(w, "%s,%s,%d\n", e.Path, e.SHA256, e.Size); err != nil {
			return err
		}
	}
	if err := w.Flush(); err != nil {
		return err
	}
	return f.Sync()
}
