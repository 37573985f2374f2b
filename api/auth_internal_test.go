package api

import (
	"context"
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"strings"
	"testing"

	"golang.org/x/crypto/bcrypt"
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
		"the hash of a user who cannot log in": {"", "secret"},
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
