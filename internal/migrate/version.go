package migrate

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgxpool"
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

// A Querier runs one statement: a pool, a connection, or a transaction of pgx.
type Querier interface {
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// The statements on goose's table are not sqlc's: the table is goose's own, and
// no migration makes it.
const (
	selectVersion = `SELECT coalesce(max(version_id), 0) FROM goose_db_version`

	// tstamp is without time zone, in that of the session that wrote it.
	selectApplied = `SELECT version_id, tstamp::timestamptz FROM goose_db_version WHERE is_applied AND version_id > 0 ORDER BY id`
)

// undefinedTable is PostgreSQL's code for a table that does not exist.
const undefinedTable = "42P01"

func isUnmigrated(err error) bool {
	var pgErr *pgconn.PgError
	return errors.As(err, &pgErr) && pgErr.Code == undefinedTable
}

// Newest returns the schema version that this binary needs.
func Newest() (int64, error) {
	list, err := sources()
	if err != nil || len(list) == 0 {
		return 0, err
	}
	return list[len(list)-1].Version, nil
}

// Check compares the database's schema with what this binary needs, in one cheap
// SELECT. The error is a [VersionError] if they differ.
//
// On a database that was never migrated the SELECT fails, and so aborts the
// transaction that db may be.
func Check(ctx context.Context, db Querier) error {
	need, err := Newest()
	if err != nil {
		return fmt.Errorf("check schema: %w", err)
	}
	var have int64
	err = db.QueryRow(ctx, selectVersion).Scan(&have)
	if err != nil && !isUnmigrated(err) {
		return fmt.Errorf("check schema: %w", err)
	}
	if have != need {
		return &VersionError{Have: have, Need: need}
	}
	return nil
}

// Status returns the migrations that this binary has or that the database of p
// has seen, in order of their versions. It changes nothing.
func Status(ctx context.Context, p *pgxpool.Pool) ([]Migration, error) {
	list, err := sources()
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
