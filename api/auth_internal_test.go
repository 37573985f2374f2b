package api

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"github.com/pithworks/pith/internal/dbtest"
)

// cheap makes a hash that costs no time.
func cheap(t *testing.T, password string) string {
	t.Helper()
	hash, err := bcrypt.GenerateFromPassword([]byte(password), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return string(hash)
}

// busy makes users that can hash nothing: all slots are taken. What they verify they remember.
func (u *users) busy() {
	for len(u.hashing) < cap(u.hashing) {
		u.hashing <- struct{}{}
	}
}

// ended is a context that has ended, so that nobody waits for a slot.
func ended(t *testing.T) context.Context {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	return ctx
}

func TestVerifiedCredentialsAreNotHashedAgain(t *testing.T) {
	t.Parallel()
	u, hash := newUsers(nil), cheap(t, "secret")
	if good, err := u.verify(t.Context(), hash, "secret"); !good || err != nil {
		t.Fatal(good, err)
	}
	u.busy()
	if good, err := u.verify(ended(t), hash, "secret"); !good || err != nil {
		t.Errorf("the second time: %t, %v", good, err)
	}
	for what, credentials := range map[string][2]string{
		"another password":                     {hash, "Secret"},
		"another hash of the same password":    {cheap(t, "secret"), "secret"},
		"the hash of a user who cannot log in": {unusable(), "secret"},
	} {
		if good, err := u.verify(ended(t), credentials[0], credentials[1]); good || !errors.Is(err, context.Canceled) {
			t.Errorf("%s: %t, %v, want a wait for a slot", what, good, err)
		}
	}
}

func TestWhatIsWrongIsNotRemembered(t *testing.T) {
	t.Parallel()
	u, hash := newUsers(nil), cheap(t, strings.Repeat("p", maxPassword))
	for what, credentials := range map[string][2]string{
		"a wrong password":              {hash, "p"},
		"one that begins like the hash": {hash, strings.Repeat("p", maxPassword+1)},
		"one of nobody":                 {"", "p"},
		"none of nobody":                {"", ""},
		"one of who cannot log in":      {"!p", "p"},
		"that of who cannot log in":     {"!p", "!p"},
		"a hash that is none":           {"p", "p"},
	} {
		if good, err := u.verify(t.Context(), credentials[0], credentials[1]); good || err != nil {
			t.Errorf("%s: %t, %v", what, good, err)
		}
	}
	if len(u.verified) != 0 {
		t.Errorf("%d are remembered", len(u.verified))
	}
	if len(u.hashing) != 0 {
		t.Errorf("%d slots are not given back", len(u.hashing))
	}
}

func TestRememberedCredentialsAreBounded(t *testing.T) {
	t.Parallel()
	u, hash := newUsers(nil), cheap(t, "secret")
	for i := range uint64(maxVerified) {
		var code [sha256.Size]byte
		binary.BigEndian.PutUint64(code[:], i)
		u.verified[code] = struct{}{}
	}
	if good, err := u.verify(t.Context(), hash, "secret"); !good || err != nil {
		t.Fatal(good, err)
	}
	if len(u.verified) != 1 {
		t.Errorf("%d are remembered", len(u.verified))
	}
}

func TestProcessesRememberUnderKeysOfTheirOwn(t *testing.T) {
	t.Parallel()
	one, other, hash := newUsers(nil), newUsers(nil), cheap(t, "secret")
	for _, u := range []*users{one, other} {
		if good, err := u.verify(t.Context(), hash, "secret"); !good || err != nil {
			t.Fatal(good, err)
		}
	}
	for code := range one.verified {
		if _, same := other.verified[code]; same {
			t.Error("two processes remember the same code")
		}
	}
}

func TestTimeDoesNotTellWhoCanLogIn(t *testing.T) {
	t.Parallel()
	u := newUsers(nil)
	_ = nobody()
	for _, hash := range []string{"", unusable()} {
		began := time.Now()
		if good, err := u.verify(t.Context(), hash, "secret"); good || err != nil {
			t.Errorf("%q: %t, %v", hash, good, err)
		}
		if took := time.Since(began); took < 5*time.Millisecond { // a tenth of what a hash takes
			t.Errorf("%q is refused after %s", hash, took)
		}
	}
}

func TestWaitForASlotIsBounded(t *testing.T) {
	t.Parallel()
	hash := cheap(t, "secret")
	synctest.Test(t, func(t *testing.T) {
		u := newUsers(nil)
		u.busy()
		began := time.Now()
		type end struct {
			good bool
			err  error
			took time.Duration
		}
		ends := make(chan end, maxWaiting+1)
		verify := func() {
			good, err := u.verify(t.Context(), hash, "secret")
			ends <- end{good, err, time.Since(began)}
		}
		for range maxWaiting {
			go verify()
		}
		synctest.Wait()
		if len(ends) > 0 || len(u.waiting) != maxWaiting {
			t.Errorf("%d have ended, %d wait", len(ends), len(u.waiting))
		}
		verify()
		if e := <-ends; !errors.Is(e.err, errBusy) || e.took > 0 {
			t.Errorf("one too many: %+v", e)
		}
		<-u.hashing
		if e := <-ends; !e.good || e.err != nil || e.took > 0 {
			t.Errorf("the first for whom there is a slot: %+v", e)
		}
		// It gives its slot to the next, and so on.
		for range maxWaiting - 1 {
			if e := <-ends; !e.good || e.err != nil || e.took > 0 {
				t.Errorf("the next: %+v", e)
			}
		}
		u.busy()
		u.verified = map[[sha256.Size]byte]struct{}{}
		go verify()
		if e := <-ends; !errors.Is(e.err, errBusy) || e.took != maxWait {
			t.Errorf("one who waits for too long: %+v", e)
		}
		if len(u.waiting) != 0 {
			t.Errorf("%d still wait", len(u.waiting))
		}
	})
}

func TestBusyServerTellsWhenToComeBack(t *testing.T) {
	t.Parallel()
	d := dbtest.New(t)
	s := newServer(t, d)
	s.users.busy()
	for len(s.users.waiting) < cap(s.users.waiting) {
		s.users.waiting <- struct{}{}
	}
	r := httptest.NewRequest(http.MethodGet, "/pulp/api/v3/tasks/", nil)
	r.SetBasicAuth("nobody", "secret")
	w := httptest.NewRecorder()
	s.Handler().ServeHTTP(w, r)
	if w.Code != http.StatusServiceUnavailable || w.Header().Get("Retry-After") != "1" ||
		w.Body.String() != `{"detail":"Too many passwords are to be verified at the moment."}` {
		t.Errorf("%d %v %s", w.Code, w.Header(), w.Body)
	}
}
