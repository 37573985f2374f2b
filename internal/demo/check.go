package demo

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// hashLimit is how much is digested once more by the check.
const hashLimit = 2 << 30

// Check is what a look at the disk says of the manifest.
type Check struct {
	// Lines of the manifest; the size of each file was compared.
	Lines int `json:"lines"`
	// Hashed files, with HashedBytes, were digested once more: a random sample where it is not All.
	Hashed      int   `json:"hashed_files"`
	HashedBytes int64 `json:"hashed_bytes"`
	All         bool  `json:"all_hashed"`
	// Changed files have changed, appeared or gone since the demo began; they prove nothing.
	Changed int `json:"changed_meanwhile"`
	// Problems are what is wrong; none means that the manifest is right.
	Problems []string `json:"problems,omitempty"`
}

func (c *Check) problem(format string, args ...any) {
	c.Problems = append(c.Problems, fmt.Sprintf(format, args...))
}

// readManifest reads a manifest: the digest and the size are the last two fields of a line.
func readManifest(path string) ([]entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var out []entry
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for n := 1; lines.Scan(); n++ {
		line := lines.Text()
		head, size, ok1 := cutLast(line, ",")
		name, sum, ok2 := cutLast(head, ",")
		bytes, err := strconv.ParseInt(size, 10, 64)
		if !ok1 || !ok2 || err != nil || len(sum) != 64 {
			return nil, fmt.Errorf("%s:%d: not a line path,sha256,size", path, n)
		}
		out = append(out, entry{name, sum, bytes})
	}
	return out, lines.Err()
}

func cutLast(s, sep string) (before, after string, found bool) {
	i := strings.LastIndex(s, sep)
	if i < 0 {
		return "", "", false
	}
	return s[:i], s[i+len(sep):], true
}

// check compares the manifest with the directory as it is now, on its own: by the lines, their order,
// every size, and the digests of all files or of a sample. Files that changed after since are not
// judged.
func check(ctx context.Context, dir, out string, skipped []Skipped, since time.Time, limit int64) (Check, error) {
	var c Check
	entries, err := readManifest(out)
	if err != nil {
		return c, err
	}
	files, unfit, err := walk(ctx, dir, out)
	if err != nil {
		return c, err
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		return c, err
	}
	defer root.Close()
	// Times of files are of the kernel's coarse clock.
	since = since.Add(-time.Second)
	changed := func(path string) bool {
		info, err := os.Lstat(filepath.Join(dir, filepath.FromSlash(path)))
		return errors.Is(err, fs.ErrNotExist) || err == nil && info.ModTime().After(since)
	}
	c.Lines = len(entries)
	size := make(map[string]int64, len(files))
	for _, f := range files {
		size[f.Path] = f.Size
	}
	expected := make(map[string]bool, len(skipped)+len(unfit))
	for _, s := range append(skipped, unfit...) {
		expected[s.Path] = true
	}
	last := ""
	for i, e := range entries {
		if i > 0 && e.Path <= last {
			c.problem("%s: not in order, or twice", e.Path)
		}
		last = e.Path
		switch n, ok := size[e.Path]; {
		case ok && n == e.Size:
		case changed(e.Path):
			c.Changed++
		case !ok:
			c.problem("%s: not a regular file on the disk", e.Path)
		default:
			c.problem("%s: %d bytes in the manifest, %d on the disk", e.Path, e.Size, n)
		}
		delete(size, e.Path)
	}
	for path := range size {
		switch {
		case expected[path]:
		case changed(path):
			c.Changed++
		default:
			c.problem("%s: not in the manifest", path)
		}
	}
	var total int64
	for _, e := range entries {
		total += e.Size
	}
	c.All = total <= limit
	if !c.All {
		rand.Shuffle(len(entries), func(i, j int) { entries[i], entries[j] = entries[j], entries[i] })
	}
	for _, e := range entries {
		if !c.All && c.HashedBytes+e.Size > limit {
			continue
		}
		sum, _, err := digestFile(ctx, root, e.Path, func(int64) error { return nil })
		switch {
		case ctx.Err() != nil:
			return c, context.Cause(ctx)
		case err == nil && sum == e.SHA256:
		case changed(e.Path):
			c.Changed++
			continue
		case err != nil:
			c.problem("%s: %v", e.Path, reason(err))
		default:
			c.problem("%s: digest %s in the manifest, %s on the disk", e.Path, e.SHA256, sum)
		}
		c.Hashed++
		c.HashedBytes += e.Size
	}
	return c, nil
}
