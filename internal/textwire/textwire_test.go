package textwire_test

import (
	"math"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5/pgtype"
	"github.com/jackc/pgx/v5/pgxpool"

	"github.com/pithworks/pith/internal/dbtest"
	"github.com/pithworks/pith/internal/textwire"
	"github.com/pithworks/pith/pool"
)

func TestMain(m *testing.M) { dbtest.Main(m) }

var uuids = []pgtype.UUID{
	{},
	{Valid: true},
	{Bytes: [16]byte{0x01, 0x23, 0x45, 0x67, 0x89, 0xab, 0xcd, 0xef, 0xfe, 0xdc, 0xba, 0x98, 0x76, 0x54, 0x32, 0x10}, Valid: true},
}

var texts = []string{"", "a", "NULL", "null", `"`, `\`, `a\"b`, "{}", "a,b", " x ", "\n\t", "ü☃𝄞", `{"a": ["b\\c", null]}`, "'", "$1"}

var times = []pgtype.Timestamptz{
	{},
	at(time.Date(2026, 1, 31, 12, 0, 0, 123456789, time.UTC)),
	at(time.Date(2026, 7, 1, 0, 0, 0, 0, time.FixedZone("", -3*3600))),
	at(time.Date(2026, 7, 1, 0, 0, 0, 120_000_000, time.UTC)),
	at(time.Date(1, 1, 2, 0, 0, 0, 0, time.UTC)),
	at(time.Date(1850, 1, 1, 0, 0, 0, 1000, time.UTC)), // before there were zones
	at(time.Date(9999, 12, 31, 0, 0, 0, 0, time.UTC)),
	at(time.Date(12026, 1, 1, 0, 0, 0, 0, time.UTC)),
	at(time.Date(-43, 3, 15, 12, 0, 0, 0, time.UTC)),
	{InfinityModifier: pgtype.Infinity, Valid: true},
	{InfinityModifier: pgtype.NegativeInfinity, Valid: true},
}

func at(t time.Time) pgtype.Timestamptz { return pgtype.Timestamptz{Time: t, Valid: true} }

// pools are one that sends unnamed statements, and one whose results are binary.
func pools(t *testing.T) map[string]*pgxpool.Pool {
	d := dbtest.New(t)
	named, err := pool.Open(t.Context(), d.DirectURL, pool.Config{NamedStatements: true})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(named.Close)
	return map[string]*pgxpool.Pool{"unnamed": d.Pool, "named": named}
}

func TestParametersArriveAsIfTheDriverSentThem(t *testing.T) {
	t.Parallel()
	for name, p := range pools(t) {
		t.Run(name, func(t *testing.T) {
			for _, tt := range []struct {
				cast string
				args []any
			}{
				{"uuid[]", []any{uuids, uuids[:1], uuids[:0], []pgtype.UUID(nil)}},
				{"text[]", []any{texts, texts[:1], texts[:0], []string(nil)}},
				{"int[]", []any{[]int32{0, 1, -1, math.MaxInt32, math.MinInt32}, []int32{}, []int32(nil)}},
				{"bool[]", []any{[]bool{true, false}, []bool{}, []bool(nil)}},
				{"timestamptz[]", []any{times[:7], times[1:2], times, times[8:], times[:0], []pgtype.Timestamptz(nil)}},
				{"uuid", []any{uuids[0], uuids[2]}},
				{"text", []any{"a", nil}},
			} {
				for _, arg := range tt.args {
					query := "SELECT coalesce($1::" + tt.cast + "::text, 'NULL'), $2::int"
					send := func(d textwire.DBTX) (text string) {
						t.Helper()
						rows, err := d.Query(t.Context(), query, arg, int32(7))
						if err != nil {
							t.Fatal(err)
						}
						defer rows.Close()
						var seven int32
						for rows.Next() {
							if err := rows.Scan(&text, &seven); err != nil {
								t.Fatal(err)
							}
						}
						if err := rows.Err(); err != nil || seven != 7 {
							t.Fatalf("%s %v: %d, %v", tt.cast, arg, seven, err)
						}
						return text
					}
					if got, want := send(textwire.Over(p)), send(p); got != want {
						t.Errorf("%s %v arrives as\n%s, not\n%s", tt.cast, arg, got, want)
					}
				}
			}
		})
	}
}

// row has all types that are known here, and one that isn't.
type row struct {
	ID      pgtype.UUID
	Time    pgtype.Timestamptz
	Texts   []string
	Text    string
	Int     int32
	Bool    bool
	Float   float64
	Unknown pgtype.Int8
}

func read(t *testing.T, d textwire.DBTX, query string, args ...any) (out []row, err error) {
	t.Helper()
	rows, err := d.Query(t.Context(), query, args...)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var r row
		dest := []any{&r.ID, &r.Time, &r.Texts, &r.Text, &r.Int, &r.Bool, &r.Float, &r.Unknown}
		if err := rows.Scan(dest[:len(rows.FieldDescriptions())]...); err != nil {
			return out, err
		}
		r.Time.Time = r.Time.Time.UTC()
		out = append(out, r)
	}
	return out, rows.Err()
}

func TestRowsAreReadAsTheDriverReadsThem(t *testing.T) {
	t.Parallel()
	for name, p := range pools(t) {
		t.Run(name, func(t *testing.T) {
			query := `SELECT u, t, ARRAY(SELECT unnest($3::text[]) LIMIT i), ($3::text[])[i + 1], (i - 5)::int, i % 2 = 0, i / 7.0::float8, i::bigint
				FROM (SELECT generate_series(0, 14) i) n
				LEFT JOIN unnest($1::uuid[]) WITH ORDINALITY a (u, j) ON j = i
				LEFT JOIN unnest($2::timestamptz[]) WITH ORDINALITY b (t, k) ON k = i ORDER BY i`
			for _, columns := range []string{"*", "u, t, texts, text, int, bool, float"} {
				query := "SELECT " + columns + " FROM (" + query + ") q (u, t, texts, text, int, bool, float, unknown)"
				got, err := read(t, textwire.Over(p), query, uuids, times, texts)
				if err != nil {
					t.Fatal(err)
				}
				want, err := read(t, p, query, uuids, times, texts)
				if err != nil || len(want) != len(texts) {
					t.Fatalf("%d rows, %v", len(want), err)
				}
				if diff := cmp.Diff(want, got); diff != "" {
					t.Errorf("%s:\n%s", columns, diff)
				}
			}
		})
	}
}

func TestValuesThatDoNotFitAreTheDriversErrors(t *testing.T) {
	t.Parallel()
	p := pools(t)["unnamed"]
	for _, query := range []string{
		"SELECT NULL::uuid, now(), '{}'::text[], NULL",
		"SELECT NULL::uuid, now(), '{}'::text[], '', 5000000000",
		"SELECT NULL::uuid, now(), '{}'::text[], '', 1, NULL::bool",
		"SELECT 'x', now(), '{}'::text[], ''",
		"SELECT 'abcdefgh-0000-0000-0000-000000000000', now()",
		"SELECT NULL::uuid, 'yesterday'",
		"SELECT NULL::uuid, now(), ARRAY['a', NULL]",
	} {
		_, got := read(t, textwire.Over(p), query)
		_, want := read(t, p, query)
		if got == nil || want == nil || got.Error() != want.Error() {
			t.Errorf("%s: %v, not %v", query, got, want)
		}
	}
}
