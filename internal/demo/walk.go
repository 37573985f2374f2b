package demo

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"unicode/utf8"
)

// walk finds the regular files of a directory, in order, and those that cannot be in a manifest. The
// paths in without are left out.
func walk(ctx context.Context, dir string, without ...string) (files []file, skipped []Skipped, err error) {
	var ignored []os.FileInfo
	for _, path := range without {
		if info, err := os.Lstat(path); err == nil {
			ignored = append(ignored, info)
		}
	}
	err = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		rel, relErr := filepath.Rel(dir, path)
		if relErr != nil {
			return relErr
		}
		rel = filepath.ToSlash(rel)
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case err != nil && rel == ".":
			return err
		case err != nil: // a directory that cannot be read, or went away
			skipped = append(skipped, Skipped{rel, reason(err)})
			return nil
		case !d.Type().IsRegular():
			return nil
		}
		info, err := d.Info()
		if err != nil {
			skipped = append(skipped, Skipped{rel, reason(err)})
			return nil
		}
		for _, i := range ignored {
			if os.SameFile(i, info) {
				return nil
			}
		}
		switch {
		case strings.ContainsAny(rel, "\r\n"):
			skipped = append(skipped, Skipped{rel, "a manifest cannot hold a line break in a name"})
		case !utf8.ValidString(rel):
			skipped = append(skipped, Skipped{strings.ToValidUTF8(rel, "�"), "the name is not UTF-8"})
		default:
			files = append(files, file{rel, info.Size()})
		}
		return nil
	})
	return files, skipped, err
}

// Limits of a chunk.
const (
	chunkFiles = 500
	chunkBytes = 64 << 20
	// chunksPerWorker is how many chunks each worker gets at least, if there are as many files.
	chunksPerWorker = 8
)

// cut cuts files into chunks for a number of workers.
func cut(dir string, files []file, workers int) []chunk {
	var total int64
	for _, f := range files {
		total += f.Size
	}
	parts := workers * chunksPerWorker
	mostFiles := min(chunkFiles, max(1, len(files)/parts))
	mostBytes := min(chunkBytes, max(1, total/int64(parts)))
	var chunks []chunk
	var size int64
	for _, f := range files {
		last := len(chunks) - 1
		if last < 0 || len(chunks[last].Files) >= mostFiles || (size > 0 && size+f.Size > mostBytes) {
			chunks = append(chunks, chunk{Number: len(chunks), Dir: dir})
			last, size = len(chunks)-1, 0
		}
		chunks[last].Files = append(chunks[last].Files, f)
		size += f.Size
	}
	return chunks
}
