package migrate

import "io/fs"

// Use makes other migrations those of this binary.
func (m *Migrator) Use(files fs.FS) { m.files = files }

// Oldest is what the marks say.
func Oldest(files fs.FS, version int64) (int64, error) { return oldest(files, version) }

// PauseAfter is the pause between two tries.
var PauseAfter = pauseAfter
