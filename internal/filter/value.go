package filter

import (
	"regexp/syntax"
	"strconv"
	"strings"
	"time"

	"github.com/google/uuid"
)

// maxRegex bounds a regular expression, in bytes.
const maxRegex = 1000

// clean makes a client's text into one that PostgreSQL takes: Django, too, replaces what is not UTF-8.
func clean(text string) (string, error) {
	if strings.Contains(text, "\x00") {
		return "", errZeroByte
	}
	return strings.TrimSpace(strings.ToValidUTF8(text, "\uFFFD")), nil
}

// split takes a list apart.
func split(text string) ([]string, error) {
	if strings.Count(text, ",") >= MaxValues {
		return nil, tooLong("A list", MaxValues, "values")
	}
	texts := strings.Split(text, ",")
	for i := range texts {
		texts[i] = strings.TrimSpace(texts[i])
	}
	return texts, nil
}

// slice makes values, all of one type, into an array. It is never nil, which would be SQL's null.
func slice[T any](values []any) []T {
	array := make([]T, len(values))
	for i := range values {
		array[i], _ = values[i].(T)
	}
	return array
}

func verbatim(text string) (any, error) { return text, nil }

func parseInt(text string) (any, error) {
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil {
		return nil, errNumber
	}
	return n, nil
}

// parseUUID takes the form with dashes and the one without. [uuid.Parse] knows others, and is lax with them.
func parseUUID(text string) (any, error) {
	id, err := uuid.Parse(text)
	if err != nil || len(text) != 36 && len(text) != 32 {
		return nil, errUUID
	}
	return id, nil
}

func parseBool(text string) (any, error) {
	switch strings.ToLower(text) {
	case "true", "1":
		return true, nil
	case "false", "0":
		return false, nil
	}
	return nil, errBoolean
}

// layouts are the ways to write a time. Each number but the year may have one digit, and a fraction may follow the seconds.
var layouts = func() []string {
	all := []string{"2006-1-2"}
	for _, clock := range []string{"15:4:5", "15:4"} {
		for _, zone := range []string{"", "Z07:00", "Z0700", "Z07"} {
			all = append(all, "2006-1-2 "+clock+zone)
		}
	}
	return all
}()

// ParseTime reads RFC 3339 and what Django takes: a date, or a date and a time of day after a T or a blank, and a zone, which
// blanks may precede. Without a zone it is UTC. The plus of a zone that nobody escaped arrives as a blank. PostgreSQL counts
// in microseconds, and Django has no years but these.
func ParseTime(text string) (time.Time, error) {
	text = strings.Replace(strings.ToUpper(text), "T", " ", 1)
	if date, clock, ok := strings.Cut(text, " "); ok {
		at, zone, _ := strings.Cut(clock, " ")
		if zone = strings.TrimLeft(zone, " "); zone != "" && '0' <= zone[0] && zone[0] <= '9' {
			zone = "+" + zone
		}
		text = date + " " + at + zone
	}
	for _, layout := range layouts {
		t, err := time.Parse(layout, text)
		if t = t.UTC().Truncate(time.Microsecond); err == nil && 1 <= t.Year() && t.Year() <= 9999 {
			return t, nil
		}
	}
	return time.Time{}, errTime
}

func parseTime(text string) (any, error) { return ParseTime(text) }

// checkRegex is a first sieve. PostgreSQL's dialect is another one: what passes may fail there, with the
// SQLSTATE [InvalidRegex]. Some of what PostgreSQL takes is refused: back references and lookaround, which
// make a match expensive.
func checkRegex(text string) error {
	if len(text) > maxRegex {
		return tooLong("A regular expression", maxRegex, "bytes")
	}
	if _, err := syntax.Parse(text, syntax.Perl); err != nil {
		return errRegex
	}
	return nil
}
