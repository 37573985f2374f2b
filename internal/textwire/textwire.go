// Package textwire encodes parameters and decodes rows in PostgreSQL's text format, for statements that
// carry thousands of values. The driver does the same, by reflection, at several times the cost.
//
// Unnamed statements use the text format in both directions. What this package doesn't know, a result in
// the binary format for one, it leaves to the driver, so nothing but the cost depends on it.
package textwire

import (
	"context"
	"encoding/hex"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
	"github.com/jackc/pgx/v5/pgtype"
)

// DBTX is what statements run on: a pool, a connection or a transaction.
type DBTX interface {
	Exec(ctx context.Context, sql string, args ...any) (pgconn.CommandTag, error)
	Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error)
	QueryRow(ctx context.Context, sql string, args ...any) pgx.Row
}

// Over returns d with a Query that encodes arrays and decodes rows by this package.
func Over(d DBTX) DBTX { return over{d} }

type over struct{ DBTX }

func (o over) Query(ctx context.Context, sql string, args ...any) (pgx.Rows, error) {
	r, err := o.DBTX.Query(ctx, sql, encode(args)...)
	if err != nil {
		return r, err
	}
	return &rows{Rows: r}, nil
}

// scratch holds buffers that texts are made in.
var scratch = sync.Pool{New: func() any { return new([]byte) }}

// scratchMost is the size in bytes above which a buffer is not kept.
const scratchMost = 1 << 20

// encode replaces arrays by their texts. A nil slice is NULL.
func encode(args []any) []any {
	buf := scratch.Get().(*[]byte)
	b := (*buf)[:0]
	encoded := make([]any, len(args))
	ends := make([]int, len(args))
	for i, arg := range args {
		start := len(b)
		if b, encoded[i] = appendArray(b, arg); encoded[i] != nil {
			b = b[:start]
		}
		ends[i] = len(b)
	}
	texts := string(b) // all of them at once
	start := 0
	for i, end := range ends {
		if end > start {
			encoded[i] = texts[start:end]
		}
		start = end
	}
	if cap(b) <= scratchMost {
		*buf = b
		scratch.Put(buf)
	}
	return encoded
}

// empty is the text of an array without elements.
var empty any = "{}"

// appendArray appends the text of an array, or returns what is to be sent instead, if that is not nil.
func appendArray(b []byte, arg any) ([]byte, any) {
	switch a := arg.(type) {
	case []pgtype.UUID:
		return elements(b, a, func(b []byte, id pgtype.UUID) ([]byte, bool) {
			if !id.Valid {
				return append(b, "NULL"...), true
			}
			return appendUUID(b, id.Bytes), true
		})
	case []string:
		return elements(b, a, func(b []byte, s string) ([]byte, bool) { return appendText(b, s), true })
	case []int32:
		return elements(b, a, func(b []byte, n int32) ([]byte, bool) { return strconv.AppendInt(b, int64(n), 10), true })
	case []bool:
		return elements(b, a, func(b []byte, v bool) ([]byte, bool) {
			if v {
				return append(b, 't'), true
			}
			return append(b, 'f'), true
		})
	case []pgtype.Timestamptz:
		return elements(b, a, appendTime)
	}
	return b, arg
}

// elements appends the text of an array. Where an element has no text here, the slice is to be sent.
func elements[T any](b []byte, a []T, element func([]byte, T) ([]byte, bool)) ([]byte, any) {
	switch {
	case a == nil:
		return b, nil
	case len(a) == 0:
		return b, empty
	}
	b = append(b, '{')
	for i, v := range a {
		if i > 0 {
			b = append(b, ',')
		}
		var ok bool
		if b, ok = element(b, v); !ok {
			return b, a
		}
	}
	return append(b, '}'), nil
}

func appendUUID(b []byte, id [16]byte) []byte {
	b = hex.AppendEncode(b, id[:4])
	for _, part := range [][]byte{id[4:6], id[6:8], id[8:10], id[10:]} {
		b = hex.AppendEncode(append(b, '-'), part)
	}
	return b
}

func appendText(b []byte, s string) []byte {
	b = append(b, '"')
	for {
		i := strings.IndexAny(s, `"\`)
		if i < 0 {
			return append(append(b, s...), '"')
		}
		b = append(append(b, s[:i]...), '\\', s[i])
		s = s[i+1:]
	}
}

func appendTime(b []byte, t pgtype.Timestamptz) ([]byte, bool) {
	if !t.Valid {
		return append(b, "NULL"...), true
	}
	u := t.Time.UTC()
	if t.InfinityModifier != pgtype.Finite || u.Year() < 1 || u.Year() > 9999 {
		return b, false
	}
	b = u.AppendFormat(append(b, '"'), "2006-01-02 15:04:05.999999Z07:00")
	return append(b, '"'), true
}

// rows decodes what it knows and leaves the rest to the driver.
type rows struct {
	pgx.Rows
	begun, text bool
	// last holds the last text of each column: many columns repeat it.
	last []string
}

// Scan reads the row into dest, as pgx.Rows does.
func (r *rows) Scan(dest ...any) error {
	if !r.begun {
		r.begun, r.text = true, true
		for _, f := range r.FieldDescriptions() {
			r.text = r.text && f.Format == pgx.TextFormatCode
		}
		r.last = make([]string, len(dest))
	}
	if values := r.RawValues(); r.text && len(values) == len(dest) && len(values) == len(r.last) {
		i := 0
		for i < len(dest) && decode(values[i], dest[i], &r.last[i]) {
			i++
		}
		if i == len(dest) {
			return nil
		}
	}
	return r.Rows.Scan(dest...)
}

// decode reads the text of one value (nil: NULL). It reports false for what it doesn't know.
func decode(value []byte, dest any, last *string) bool {
	switch d := dest.(type) {
	case *pgtype.UUID:
		var ok bool
		*d, ok = parseUUID(value)
		return ok
	case *pgtype.Timestamptz:
		var ok bool
		*d, ok = parseTime(value)
		return ok
	case *[]string:
		var ok bool
		*d, ok = parseTexts(value)
		return ok
	}
	if value == nil {
		return false
	}
	switch d := dest.(type) {
	case *string:
		if *last != string(value) {
			*last = string(value)
		}
		*d = *last
	case *int32:
		n, err := strconv.ParseInt(string(value), 10, 32)
		*d = int32(n)
		return err == nil
	case *bool:
		*d = string(value) == "t"
		return *d || string(value) == "f"
	case *float64:
		var err error
		*d, err = strconv.ParseFloat(string(value), 64)
		return err == nil
	default:
		return false
	}
	return true
}

// Records reads the texts of records of one type, one after the other.
type Records struct {
	buf  []byte
	last []string
}

// Scan reads the fields of a record into dest: *string, *int32, *bool, *float64, *[]string, *pgtype.UUID and
// *pgtype.Timestamptz. Only the last three may be NULL.
func (r *Records) Scan(record string, dest ...any) error {
	if len(r.last) < len(dest) {
		r.buf, r.last = []byte{}, make([]string, len(dest))
	}
	s, inside := strings.CutPrefix(record, "(")
	if !inside {
		return fmt.Errorf("read a record: %.100q does not begin with a parenthesis", record)
	}
	for i, d := range dest {
		var null bool
		if null = s != "" && (s[0] == ',' || s[0] == ')'); !null {
			if s, inside = r.field(s); !inside {
				return fmt.Errorf("read a record: field %d of %.100q does not end", i+1, record)
			}
		}
		value := r.buf
		if null {
			value = nil
		}
		if !decode(value, d, &r.last[i]) {
			return fmt.Errorf("read a record: field %d of %.100q is no %T", i+1, record, d)
		}
		end := byte(',')
		if i == len(dest)-1 {
			end = ')'
		}
		if s == "" || s[0] != end {
			return fmt.Errorf("read a record: %.100q has not %d fields", record, len(dest))
		}
		s = s[1:]
	}
	if s != "" {
		return fmt.Errorf("read a record: %.100q has not %d fields", record, len(dest))
	}
	return nil
}

// field reads one field, which is not NULL, into buf, and returns what follows.
func (r *Records) field(s string) (rest string, ok bool) {
	r.buf = r.buf[:0]
	if s == "" || s[0] != '"' {
		i := strings.IndexAny(s, ",)")
		if i < 0 {
			return s, false
		}
		r.buf = append(r.buf, s[:i]...)
		return s[i:], true
	}
	for s = s[1:]; ; {
		i := strings.IndexAny(s, `"\`)
		if i < 0 || i+1 == len(s) {
			return s, false
		}
		r.buf = append(r.buf, s[:i]...)
		if s[i] == '"' && s[i+1] != '"' {
			return s[i+1:], true
		}
		r.buf = append(r.buf, s[i+1])
		s = s[i+2:]
	}
}

func parseUUID(s []byte) (id pgtype.UUID, ok bool) {
	if s == nil {
		return id, true
	}
	if len(s) != 36 || s[8] != '-' || s[13] != '-' || s[18] != '-' || s[23] != '-' {
		return id, false
	}
	at := 0
	for _, part := range [][]byte{s[:8], s[9:13], s[14:18], s[19:23], s[24:]} {
		n, err := hex.Decode(id.Bytes[at:], part)
		if err != nil {
			return pgtype.UUID{}, false
		}
		at += n
	}
	id.Valid = true
	return id, true
}

// parseTime reads the ISO style of the years 1 to 9999, 2026-01-31 12:00:00.123456+05:45.
func parseTime(s []byte) (t pgtype.Timestamptz, ok bool) {
	if s == nil {
		return t, true
	}
	if len(s) < len("2026-01-31 12:00:00+00") || s[4] != '-' || s[7] != '-' || s[10] != ' ' || s[13] != ':' || s[16] != ':' {
		return t, false
	}
	good := true
	number := func(digits []byte) int {
		n := 0
		for _, c := range digits {
			good = good && c >= '0' && c <= '9'
			n = n*10 + int(c-'0')
		}
		return n
	}
	year, month, day := number(s[:4]), number(s[5:7]), number(s[8:10])
	hour, minute, second := number(s[11:13]), number(s[14:16]), number(s[17:19])
	s = s[19:]
	nanos := 0
	if s[0] == '.' {
		i := 1
		for i < len(s) && s[i] >= '0' && s[i] <= '9' {
			i++
		}
		if i > 7 {
			return t, false
		}
		nanos = number(s[1:i])
		for n := i; n < 10; n++ {
			nanos *= 10
		}
		s = s[i:]
	}
	// The zone: hours, and minutes and seconds if they are not 0.
	if len(s) != 3 && len(s) != 6 && len(s) != 9 || s[0] != '+' && s[0] != '-' {
		return t, false
	}
	offset := 0
	for i, unit := 0, 3600; i < len(s); i, unit = i+3, unit/60 {
		good = good && (i == 0 || s[i] == ':')
		offset += number(s[i+1:i+3]) * unit
	}
	if s[0] == '-' {
		offset = -offset
	}
	if !good || year < 1 || month < 1 || month > 12 || day < 1 || day > 31 || hour > 23 || minute > 59 || second > 59 {
		return t, false
	}
	return pgtype.Timestamptz{Time: time.Date(year, time.Month(month), day, hour, minute, second-offset, nanos, time.UTC), Valid: true}, true
}

// parseTexts reads an array of texts of one dimension without NULLs.
func parseTexts(s []byte) (texts []string, ok bool) {
	if s == nil {
		return nil, true
	}
	if len(s) < 2 || s[0] != '{' || s[len(s)-1] != '}' {
		return nil, false
	}
	s = s[1 : len(s)-1]
	texts = []string{}
	if len(s) == 0 {
		return texts, true
	}
	for {
		var text []byte
		if s[0] == '"' {
			i := 1
			for i < len(s) && s[i] != '"' {
				if s[i] == '\\' {
					i++
				}
				if i < len(s) {
					text = append(text, s[i])
				}
				i++
			}
			if i >= len(s) {
				return nil, false
			}
			s = s[i+1:]
		} else {
			i := 0
			for i < len(s) && s[i] != ',' {
				if s[i] == '{' || s[i] == '}' || s[i] == '"' || s[i] == '\\' {
					return nil, false
				}
				i++
			}
			text, s = s[:i], s[i:]
			if len(text) == 0 || strings.EqualFold(string(text), "NULL") {
				return nil, false
			}
		}
		texts = append(texts, string(text))
		if len(s) == 0 {
			return texts, true
		}
		if s[0] != ',' || len(s) == 1 {
			return nil, false
		}
		s = s[1:]
	}
}
