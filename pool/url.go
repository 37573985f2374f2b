package pool

import (
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/jackc/pgx/v5"
)

// A password whose special characters are not written as they must be falls apart, and its parts are taken for
// something else. So what is said of a database URL quotes nothing that may be such a part.

// advice is for who has written a password as it is.
const advice = "write what is special in a password as %XX (@ is %40, / is %2F) in a URL, or between single quotes in keyword=value pairs"

// withoutURL is the reason alone. pgx quotes the URL before it, and finds most passwords in it, not all. Where
// the URL itself cannot be read, the reason quotes parts of it, too.
func withoutURL(err error) string {
	text := err.Error()
	for _, form := range []string{"failed to parse as URL", "failed to parse as keyword/value"} {
		if strings.Contains(text, "`: "+form) {
			return form + ": " + advice
		}
	}
	if i := strings.LastIndex(text, "`: "); i >= 0 {
		return text[i+len("`: "):]
	}
	return text
}

// mislaid finds a URL that can be read, but not as it was meant: a host has no @, and the database's name has one
// only where the user before it is missing.
func mislaid(url string, c *pgx.ConnConfig) error {
	hosts := []string{c.Host}
	for _, f := range c.Fallbacks {
		hosts = append(hosts, f.Host)
	}
	if slices.ContainsFunc(hosts, func(h string) bool { return strings.Contains(h, "@") }) {
		return errors.New("the host's name has an @: " + advice)
	}
	_, rest, isURL := strings.Cut(url, "://")
	if i := strings.IndexAny(rest, "@/"); isURL && i >= 0 && rest[i] == '/' {
		if path, _, _ := strings.Cut(rest[i:], "?"); strings.Contains(path, "@") {
			return errors.New("the database's name has an @: if it belongs there, write it as %40; else " + advice)
		}
	}
	return nil
}

// parameters are names of startup parameters that may be shown.
var parameters = []string{
	"application_name", "client_encoding", "datestyle", "default_transaction_isolation", "default_transaction_read_only",
	"fallback_application_name", "idle_in_transaction_session_timeout", "intervalstyle", "keepalives", "lock_timeout", "options",
	"replication", "role", "search_path", "statement_timeout", "synchronous_commit", "timezone", "transaction_timeout", "work_mem",
}

// known is a parameter's name, quoted, if it is one.
func known(name string) string {
	if slices.Contains(parameters, strings.ToLower(name)) {
		return strconv.Quote(name)
	}
	return "(of an unknown name; if it is a part of the password, " + advice + ")"
}
