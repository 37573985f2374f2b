package pool

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/jackc/pgx/v5"
	"github.com/jackc/pgx/v5/pgconn"
)

// signer makes tokens with numbers and notes for whom.
type signer struct {
	life time.Duration

	mu    sync.Mutex
	made  []string
	fails error
	// asked, if there is one, gets a value when a call begins, which then waits for gate.
	asked, gate chan struct{}
}

func (s *signer) sign(ctx context.Context, to Endpoint) (string, time.Time, error) {
	if s.asked != nil {
		s.asked <- struct{}{}
		select {
		case <-s.gate:
		case <-ctx.Done():
			return "", time.Time{}, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.fails != nil {
		return "", time.Time{}, s.fails
	}
	s.made = append(s.made, fmt.Sprintf("token %d for %s", len(s.made)+1, to))
	return s.made[len(s.made)-1], time.Now().Add(s.life), nil
}

func (s *signer) calls() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.made)
}

func (s *signer) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fails = err
}

// settings are a connection's, as pgxpool hands them out.
func settings(t *testing.T, url string) *pgx.ConnConfig {
	t.Helper()
	c, err := pgx.ParseConfig(url)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// password is what a connection would be made with.
func password(t *testing.T, k *tokens, url string) string {
	t.Helper()
	c := settings(t, url)
	if err := k.beforeConnect(t.Context(), c); err != nil {
		t.Fatal(err)
	}
	return c.Password
}

const tlsURL = "postgres://pith:old@proxy.example/pith?sslmode=require"

func TestTokenIsRenewedBeforeItExpires(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &signer{life: 15 * time.Minute}
		k := newTokens(s.sign)
		var got []int
		for range 30 {
			password(t, k, tlsURL)
			got = append(got, s.calls())
			<-time.After(time.Minute)
		}
		// At 12 minutes a fifth of its life is left.
		want := slices.Concat(slices.Repeat([]int{1}, 12), slices.Repeat([]int{2}, 12), slices.Repeat([]int{3}, 6))
		if d := cmp.Diff(want, got); d != "" {
			t.Error(d)
		}
	})
}

func TestManyConnectionsAskOnce(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &signer{life: time.Minute, asked: make(chan struct{}), gate: make(chan struct{})}
		k := newTokens(s.sign)
		var wg sync.WaitGroup
		for range 50 {
			wg.Go(func() {
				if got, want := password(t, k, tlsURL), "token 1 for pith@proxy.example:5432"; got != want {
					t.Errorf("got %q, want %q", got, want)
				}
			})
		}
		<-s.asked
		synctest.Wait() // a second call would now wait to tell
		select {
		case <-s.asked:
			t.Error("a second call while the first one runs")
		default:
		}
		close(s.gate)
		wg.Wait()
	})
}

func TestEndpointsHaveTokensOfTheirOwn(t *testing.T) {
	t.Parallel()
	s := &signer{life: time.Minute}
	k := newTokens(s.sign)
	urls := []string{
		tlsURL,
		"postgres://pith@other.example/pith?sslmode=verify-full",
		"postgres://pith@proxy.example:6432/pith?sslmode=require",
		"postgres://admin@proxy.example/pith?sslmode=require",
		"postgres://pith@/pith?host=/run/postgresql&sslmode=disable",
	}
	var got []string
	for range 2 {
		got = nil
		for _, url := range urls {
			got = append(got, password(t, k, url))
		}
	}
	want := []string{
		"token 1 for pith@proxy.example:5432",
		"token 2 for pith@other.example:5432",
		"token 3 for pith@proxy.example:6432",
		"token 4 for admin@proxy.example:5432",
		"token 5 for pith@/run/postgresql:5432",
	}
	if d := cmp.Diff(want, got); d != "" {
		t.Error(d)
	}
}

func TestTokenServesOnWhileTheSourceFails(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &signer{life: 10 * time.Minute}
		k := newTokens(s.sign)
		first := password(t, k, tlsURL)
		s.fail(errors.New("no network"))
		<-time.After(9 * time.Minute)
		if got := password(t, k, tlsURL); got != first {
			t.Errorf("got %q, want %q", got, first)
		}
		<-time.After(2 * time.Minute)
		err := k.beforeConnect(t.Context(), settings(t, tlsURL))
		if want := "token for pith@proxy.example:5432: no network"; err == nil || err.Error() != want {
			t.Errorf("after its end: got %v, want %s", err, want)
		}
		if !pgconn.SafeToRetry(err) {
			t.Error("a failure of the source counts as final")
		}
		s.fail(nil)
		if got := password(t, k, tlsURL); got == first {
			t.Error("the old token is used after its end")
		}
	})
}

func TestRefusedTokenIsNotUsedAgain(t *testing.T) {
	t.Parallel()
	for code, drops := range map[string]bool{"28P01": true, "28000": true, "08P01": true, "53300": false, "57P03": false} {
		t.Run(code, func(t *testing.T) {
			t.Parallel()
			s := &signer{life: time.Minute}
			k := newTokens(s.sign)
			conns := []*pgx.ConnConfig{settings(t, tlsURL), settings(t, tlsURL)}
			for _, c := range conns {
				if err := k.beforeConnect(t.Context(), c); err != nil {
					t.Fatal(err)
				}
			}
			refusal := &pgconn.PgError{Severity: "FATAL", Code: code}
			for _, c := range conns {
				if c.OnPgError(nil, refusal) {
					t.Error("the connection goes on after a FATAL")
				}
				// The second one's refusal is about the old token, and leaves the new one alone.
				password(t, k, tlsURL)
			}
			want := 1
			if drops {
				want = 2
			}
			if got := s.calls(); got != want {
				t.Errorf("%d calls, want %d", got, want)
			}
		})
	}
}

func TestGivenUpConnectionLeavesTheOthersAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s := &signer{life: time.Minute, asked: make(chan struct{}), gate: make(chan struct{})}
		k := newTokens(s.sign)
		ctx, cancel := context.WithCancel(t.Context())
		first, second := make(chan error, 1), make(chan error, 1)
		go func() { first <- k.beforeConnect(ctx, settings(t, tlsURL)) }()
		<-s.asked
		go func() { second <- k.beforeConnect(t.Context(), settings(t, tlsURL)) }()
		synctest.Wait()
		cancel()
		if err := <-first; !errors.Is(err, context.Canceled) {
			t.Errorf("first: %v", err)
		}
		<-s.asked // the second one asks for itself
		close(s.gate)
		if err := <-second; err != nil {
			t.Errorf("second: %v", err)
		}
	})
}

func TestHungSourceEndsWithTheConnectTimeout(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		k := newTokens(func(ctx context.Context, _ Endpoint) (string, time.Time, error) {
			<-ctx.Done()
			return "", time.Time{}, ctx.Err()
		})
		c := settings(t, tlsURL+"&connect_timeout=7")
		began := time.Now()
		if err := k.beforeConnect(t.Context(), c); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("got %v", err)
		}
		if took := time.Since(began); took != 7*time.Second {
			t.Errorf("took %s, want 7s", took)
		}
	})
}

func TestTokenWithoutExpiryIsNotKept(t *testing.T) {
	t.Parallel()
	calls := 0
	k := newTokens(func(context.Context, Endpoint) (string, time.Time, error) {
		calls++
		return "secret", time.Time{}, nil
	})
	for range 3 {
		password(t, k, tlsURL)
	}
	if calls != 3 {
		t.Errorf("%d calls, want 3", calls)
	}
}

func TestUnusableTokenIsAnErrorThatDoesNotShowIt(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		token   string
		expires time.Time
		want    string
	}{
		"empty":    {"", time.Now().Add(time.Hour), "empty"},
		"zero":     {"secret\x00", time.Now().Add(time.Hour), "zero byte"},
		"too late": {"secret", time.Now().Add(-time.Hour), "has expired"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			k := newTokens(func(context.Context, Endpoint) (string, time.Time, error) { return tt.token, tt.expires, nil })
			c := settings(t, tlsURL)
			err := k.beforeConnect(t.Context(), c)
			if err == nil || !strings.Contains(err.Error(), tt.want) || strings.Contains(err.Error(), "secret") {
				t.Errorf("got %v, want an error with %q and without the token", err, tt.want)
			}
			if c.Password != "old" {
				t.Errorf("the password has become %q", c.Password)
			}
		})
	}
}

func TestTokenGoesOutOverTLSOnly(t *testing.T) {
	t.Parallel()
	never := func(context.Context, Endpoint) (string, time.Time, error) {
		t.Error("a token was made")
		return "", time.Time{}, errors.New("never")
	}
	for url, want := range map[string]string{
		"postgres://pith@proxy.example/pith?sslmode=disable":                              "TLS is needed",
		"postgres://pith@proxy.example/pith?sslmode=allow":                                "TLS is needed",
		"postgres://pith@proxy.example/pith?sslmode=prefer":                               "TLS is needed",
		"postgres://pith@proxy.example/pith":                                              "TLS is needed",
		"postgres://pith@one.example,two.example/pith?sslmode=require":                    "several hosts",
		"postgres://pith@one.example:5432,one.example:5433/pith?sslmode=verify-full":      "several hosts",
		"host=/run/postgresql,proxy.example user=pith dbname=pith sslmode=require":        "several hosts",
		"host=proxy.example,/run/postgresql user=pith dbname=pith sslmode=disable port=1": "TLS is needed",
	} {
		t.Run(url, func(t *testing.T) {
			t.Parallel()
			p, err := Open(t.Context(), url, Config{Token: never})
			if err == nil {
				p.Close()
			}
			if !errors.Is(err, ErrTokenUnsafe) || !strings.Contains(err.Error(), want) {
				t.Errorf("got %v, want one about %q", err, want)
			}
			// A hook that might have changed it is asked first, and does not.
			p, err = Open(t.Context(), url, Config{Token: never, BeforeConnect: func(context.Context, *pgx.ConnConfig) error { return nil }})
			if err != nil {
				t.Fatal(err)
			}
			defer p.Close()
			if err := p.Ping(t.Context()); !errors.Is(err, ErrTokenUnsafe) {
				t.Errorf("got %v, want %v", err, ErrTokenUnsafe)
			}
		})
	}
}
