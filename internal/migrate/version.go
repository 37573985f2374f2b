package migrate

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/sql/schema"
)

// The ways in which a database can differ from what this binary needs. Both are
// a [VersionError].
var (
	// ErrTooOld means that migrations are missing.
	ErrTooOld = errors.New("database schema is too old")
	// ErrTooNew means that a newer binary has migrated the database.
	ErrTooNew = errors.New("database schema is too new")
)

// A VersionError tells which schema the database has and which one is needed.
type VersionError struct {
	Have int64 // the database's version, 0 if it was never migrated
	Need int64 // this binary's newest version
	// Oldest is the least version of a binary that runs on a schema that is newer than this binary, as whoever
	// migrated it has written there; 0 if that is not known.
	Oldest int64
}

// Error names the versions and the remedy.
func (e *VersionError) Error() string {
	if e.Have < e.Need {
		return fmt.Sprintf("database schema is at version %d, this binary needs %d: run `pith migrate up`", e.Have, e.Need)
	}
	return fmt.Sprintf("database schema is at version %d, this binary knows only up to %d: use a newer binary, or run that one's `pith migrate down-to %d`", e.Have, e.Need, e.Need)
}

// Is matches [ErrTooOld] or [ErrTooNew].
func (e *VersionError) Is(target error) bool {
	return target == ErrTooOld && e.Have < e.Need || target == ErrTooNew && e.Have > e.Need
}

// Serves tells whether this binary runs on the database though they differ: it does
// on a newer schema that has only added what this binary does not use. So the processes
// of a release may be started while the next one's schema is there already.
func (e *VersionError) Serves() bool {
	return e.Have > e.Need && e.Oldest > 0 && e.Oldest <= e.Need
}

// A Querier runs one statement: a pool, a connection, or a transaction of pgx.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// The statements on goose's table are not sqlc's: the table is goose's own, and
// no migration makes it.
const (
	selectVersion = `SELECT coalesce(max(version_id), 0), coalesce(obj_description('goose_db_version'::regclass, 'pg_class'), '') FROM goose_db_version`

	// tstamp is without time zone, in that of the session that wrote it.
	selectApplied = `SELECT version_id, tstamp::timestamptz FROM goose_db_version WHERE is_applied AND version_id > 0 ORDER BY id`
)

// declaration is the comment on goose's table that says which binaries the schema serves: all from the version in the
// second place on. It holds for the version in the first place only, so one that was left behind says nothing. A comment
// is there whoever has made the table, and is read without a privilege.
const (
	declaration   = "Version %d of the schema serves the binaries of version %d and newer."
	commentOnSelf = `COMMENT ON TABLE goose_db_version IS '` + declaration + `'`
)

// oldestMark is how a migration that takes something away says which is the oldest version whose binaries do without:
// a line of its own, with the number. A migration without it leaves that as it is.
const oldestMark = "-- +pith Oldest "

// undefinedTable is PostgreSQL's code for a table that does not exist.
const undefinedTable = "42P01"

func isUnmigrated(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == undefinedTable
}

// Newest returns the schema version that this binary needs.
func Newest() (int64, error) {
	return newest(schema.FS)
}

func newest(files fs.FS) (int64, error) {
	list, err := sources(files)
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return list[len(list)-1].Version, nil
}

// oldest returns the least version of a binary that runs on the schema of the given one.
func oldest(files fs.FS, version int64) (int64, error) {
	list, err := sources(files)
	if err != nil {
		return 0, err
	}
	least := int64(1)
	for _, m := range list {
		if m.Version > version {
			break
		}
		text, err := fs.ReadFile(files, m.Name)
		if err != nil {
			return 0, fmt.Errorf("read migration: %w", err)
		}
		for line := range strings.Lines(string(text)) {
			number, ok := strings.CutPrefix(line, oldestMark)
			if !ok {
				continue
			}
			n, err := strconv.ParseInt(strings.TrimSpace(number), 10, 64)
			if err != nil || n < least || n > m.Version {
				return 0, fmt.Errorf("%s: %q: a version from %d to %d is needed", m.Name, strings.TrimSpace(line), least, m.Version)
			}
			least = n
		}
	}
	return least, nil
}

// declare writes which binaries the schema serves, unless that stands there already. Where it cannot, binaries take
// a newer schema for one that does not serve them.
func (m *Migrator) declare(ctx context.Context) {
	err := func() error {
		have, comment, err := version(ctx, m.pool)
		if err != nil || have == 0 {
			return err
		}
		need, err := newest(m.files)
		if err != nil || have > need { // its migrator knows better
			return err
		}
		least, err := oldest(m.files, have)
		if err != nil || comment == fmt.Sprintf(declaration, have, least) {
			return err
		}
		_, err = m.pool.Exec(ctx, fmt.Sprintf(commentOnSelf, have, least))
		return err
	}()
	if err != nil {
		m.cfg.Log.Warn("could not write which binaries the schema serves: older ones will refuse it", "err", err)
	}
}

// version returns the database's version, 0 if it was never migrated, and the comment that belongs to it.
func version(ctx context.Context, db Querier) (have int64, comment string, err error) {
	if err = db.QueryRow(ctx, selectVersion).Scan(&have, &comment); isUnmigrated(err) {
		return 0, "", nil
	}
	return have, comment, err
}

// Check compares the database's schema with what this binary needs, in one cheap
// SELECT. The error is a [VersionError] if they differ; see [VersionError.Serves].
//
// On a database that was never migrated the SELECT fails, and so aborts the
// transaction that db may be.
func Check(ctx context.Context, db Querier) error {
	need, err := Newest()
	if err != nil {
		return fmt.Errorf("check schema: %w", err)
	}
	have, comment, err := version(ctx, db)
	if err != nil {
		return fmt.Errorf("check schema: %w", err)
	}
	if have == need {
		return nil
	}
	differ := &VersionError{Have: have, Need: need}
	var of, least int64
	if _, err := fmt.Sscanf(comment, declaration, &of, &least); err == nil && of == have {
		differ.Oldest = least
	}
	return differ
}

// Status returns the migrations that this binary has or that the database of p
// has seen, in order of their versions. It changes nothing.
func Status(ctx context.Context, p *pgxpool.Pool) ([]Migration, error) {
	list, err := sources(schema.FS)
	if err != nil {
		return nil, err
	}
	// An error of the query itself shows when its rows are read.
	rows, _ := p.Query(ctx, selectApplied)
	var version int64
	var at time.Time
	_, err = pgx.ForEachRow(rows, []any{&version, &at}, func() error {
		i := slices.IndexFunc(list, func(m Migration) bool { return m.Version == version })
		if i < 0 {
			list = append(list, Migration{Version: version})
			i = len(list) - 1
		}
		list[i].AppliedAt = at
		return nil
	})
	if err != nil && !isUnmigrated(err) {
		return nil, fmt.Errorf("read migration status: %w", err)
	}
	slices.SortFunc(list, byVersion)
	return list, nil
}
