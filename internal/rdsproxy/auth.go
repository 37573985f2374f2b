package rdsproxy

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"errors"
	"fmt"

	"github.com/jackc/pgx/v5/pgproto3"
	"github.com/xdg-go/scram"
)

const (
	mechanism = "SCRAM-SHA-256"

	// maxAuthMessage bounds a message of a client that has not proved who it is.
	maxAuthMessage = 64 << 10

	// iterations are PostgreSQL's own for SCRAM-SHA-256.
	iterations = 4096
	saltSize   = 16
)

// secrets are what clients are checked against.
type secrets struct {
	passwords map[string]string
	scram     map[string]scram.StoredCredentials
	decoy     [sha256.Size]byte // the credentials of users that do not exist derive from it
}

func newSecrets(users map[string]string) (*secrets, error) {
	s := &secrets{passwords: users, scram: make(map[string]scram.StoredCredentials, len(users))}
	_, _ = rand.Read(s.decoy[:]) // never fails
	for user, password := range users {
		// Like PostgreSQL, take a password as it is if it cannot be normalized.
		c, err := scram.SHA256.NewClient("", password, "")
		if err != nil {
			if c, err = scram.SHA256.NewClientUnprepped("", password, ""); err != nil {
				return nil, fmt.Errorf("password of user %q: %w", user, err)
			}
		}
		var salt [saltSize]byte
		_, _ = rand.Read(salt[:])
		s.scram[user], err = c.GetStoredCredentialsWithError(scram.KeyFactors{Salt: string(salt[:]), Iters: iterations})
		if err != nil {
			return nil, fmt.Errorf("password of user %q: %w", user, err)
		}
	}
	return s, nil
}

// credentials returns those of a user. One that does not exist gets some that no
// password fits, always the same ones, so that nothing tells it from others.
func (s *secrets) credentials(user string) scram.StoredCredentials {
	if c, ok := s.scram[user]; ok {
		return c
	}
	mac := hmac.New(sha256.New, s.decoy[:])
	mac.Write([]byte(user))
	sum := mac.Sum(nil)
	return scram.StoredCredentials{
		KeyFactors: scram.KeyFactors{Salt: string(sum[:saltSize]), Iters: iterations},
		StoredKey:  sum,
		ServerKey:  sum,
	}
}

// errAuth means that a client did not prove who it is.
var errAuth = errors.New("authentication failed")

// authenticate lets the client prove that it is s.user. The error is errAuth if it
// failed to, and another one if it did not speak the protocol.
func (s *session) authenticate() error {
	if s.p.cfg.Auth == AuthPassword {
		return s.authPassword()
	}
	return s.authSCRAM()
}

func (s *session) authPassword() error {
	if err := s.reply(&pgproto3.AuthenticationCleartextPassword{}); err != nil {
		return err
	}
	body, err := s.authMessage()
	if err != nil {
		return err
	}
	var m pgproto3.PasswordMessage
	if err := m.Decode(body); err != nil {
		return protocolError(err.Error())
	}
	secret, known := s.p.secrets.passwords[s.user]
	var right bool
	if verify := s.p.cfg.VerifyPassword; verify != nil {
		right = verify(s.user, m.Password) == nil
	} else {
		// Hashes have one length: the comparison tells nothing of the secret's.
		want, got := sha256.Sum256([]byte(secret)), sha256.Sum256([]byte(m.Password))
		right = subtle.ConstantTimeCompare(want[:], got[:]) == 1
	}
	if !known || !right {
		return errAuth
	}
	return nil
}

func (s *session) authSCRAM() error {
	if err := s.reply(&pgproto3.AuthenticationSASL{AuthMechanisms: []string{mechanism}}); err != nil {
		return err
	}
	body, err := s.authMessage()
	if err != nil {
		return err
	}
	var first pgproto3.SASLInitialResponse
	if err := first.Decode(body); err != nil {
		return protocolError(err.Error())
	}
	if first.AuthMechanism != mechanism {
		return protocolError("client selected an invalid SASL authentication mechanism")
	}
	// The name within SCRAM is ignored, as PostgreSQL does: libpq leaves it empty.
	server, err := scram.SHA256.NewServer(func(string) (scram.StoredCredentials, error) {
		return s.p.secrets.credentials(s.user), nil
	})
	if err != nil {
		return err
	}
	conv := server.NewConversation()
	challenge, err := conv.Step(string(first.Data))
	if err != nil {
		return protocolError("malformed SCRAM message")
	}
	if err := s.reply(&pgproto3.AuthenticationSASLContinue{Data: []byte(challenge)}); err != nil {
		return err
	}
	body, err = s.authMessage()
	if err != nil {
		return err
	}
	final, err := conv.Step(string(body))
	_, known := s.p.secrets.scram[s.user]
	if err != nil || !conv.Valid() || !known {
		return errAuth
	}
	return s.reply(&pgproto3.AuthenticationSASLFinal{Data: []byte(final)})
}

// authMessage reads the body of a message of type p.
func (s *session) authMessage() ([]byte, error) {
	s.in.limit = maxAuthMessage
	typ, n, err := s.in.header()
	if err != nil {
		return nil, err
	}
	if typ != 'p' {
		return nil, protocolError(fmt.Sprintf("expected password response, got message type %d", typ))
	}
	frame, err := s.in.frame(n)
	if err != nil {
		return nil, err
	}
	return frame[headerSize:], nil
}
