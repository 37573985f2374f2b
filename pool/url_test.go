package pool_test

import (
	"strings"
	"testing"

	"github.com/pithworks/pith/pool"
)

// Whatever is wrong with a URL, none of the parts of its password is shown.
func TestUnusableURLIsRefusedWithoutItsPassword(t *testing.T) {
	t.Parallel()
	for url, want := range map[string]string{
		"postgres://me:hush@host:port/pith":                                "invalid port",
		"postgres://me:hush%zzhash@host/pith":                              "failed to parse as URL: write what is special in a password as %XX",
		"postgres://me:hu sh@host/pith":                                    "failed to parse as URL",
		"postgres://me:hush@hash@host/pith":                                "the host's name has an @",
		"postgres://me:hush@one,hash@two/pith":                             "the host's name has an @",
		"postgres://me:hush/hash@host/pith":                                "invalid port",
		"postgres://me:123/hash@host/pith":                                 "the database's name has an @",
		"postgres://me:123/hash@host/pith?sslmode=disable":                 "the database's name has an @",
		"postgres://me:hush@host/pith?hush":                                "failed to parse as URL",
		"postgres://me:hush@host/pith?hush=1=2":                            "failed to parse as URL",
		"postgres://me:x@host/pith?sslmode=disable&hush=1":                 "startup parameter (of an unknown name;",
		"postgres://host/pith?user=me&password=a&hush=b":                   "startup parameter (of an unknown name;",
		"postgres://host/pith?user=me&password=hush%zz":                    "failed to parse as URL",
		"postgres://me:hush@[::1/pith":                                     "failed to parse as URL",
		"postgres://me:`: hush@hash host/pith":                             "failed to parse as URL",
		"postgres://me:hush@host/pith?search_path=x":                       `startup parameter "search_path" is not possible behind a pooler`,
		"postgres://me:hush@host/pith?TimeZone=UTC":                        `startup parameter "TimeZone"`,
		"postgres://me:hush@host/pith?sslmode=perhaps":                     "sslmode is invalid",
		"postgres://me:hush@host/pith?pool_max_conns=many":                 "cannot parse pool_max_conns",
		"postgres://me:hush@host/pith?sslmode=verify-ca&sslrootcert=/none": "unable to read CA file",
		"host=host user=me password=hush hash dbname=pith":                 "failed to parse as keyword/value",
		"host=host user=me password=a hush=b dbname=pith":                  "startup parameter (of an unknown name;",
		"host=host user=me password='hush":                                 "failed to parse as keyword/value",
		"host=host password=hush port=many":                                "invalid port",
		"hush":                                                             "failed to parse as keyword/value",
	} {
		p, err := pool.Open(t.Context(), url, pool.Config{})
		if err == nil {
			p.Close()
			t.Errorf("%s: no error", url)
			continue
		}
		text := err.Error()
		if !strings.HasPrefix(text, "parse database URL: ") || !strings.Contains(text, want) {
			t.Errorf("%s: got %q, want one about %q", url, text, want)
		}
		for _, part := range []string{"hush", "hash", "123"} {
			if strings.Contains(text, part) {
				t.Errorf("%s: %q shows a part of the password", url, text)
			}
		}
	}
}

func TestURLsThatAreRightAreTaken(t *testing.T) {
	t.Parallel()
	for url, password := range map[string]string{
		"postgres://me:hush%40hash@host/pith":                    "hush@hash",
		"postgres://me:hush%2Fhash@host/pith?sslmode=disable":    "hush/hash",
		"postgres://me%40server:hush@host/pith":                  "hush",
		"postgres://host/pith?user=me@server&password=hush@hash": "hush@hash",
		"postgres://me:hu?sh#ha@one:1,two:2/pith":                "hu?sh#ha",
		"postgres:///pith?host=/run/postgresql&user=me@server":   "",
		"postgres://host/pi%40th":                                "",
		"postgres://me:hush@host/pi@th":                          "hush",
		"host=host user=me@server password='hush @ hash'":        "hush @ hash",
	} {
		p, err := pool.Open(t.Context(), url, pool.Config{})
		if err != nil {
			t.Errorf("%s: %v", url, err)
			continue
		}
		if got := p.Config().ConnConfig.Password; got != password {
			t.Errorf("%s: the password is %q, want %q", url, got, password)
		}
		p.Close()
	}
}
