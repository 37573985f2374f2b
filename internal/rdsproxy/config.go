package rdsproxy

import (
	"cmp"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"slices"
	"time"

	"github.com/jackc/pgx/v5/pgconn"
)

// Auth is how clients prove who they are.
type Auth int

const (
	// AuthSCRAM is SCRAM-SHA-256 without channel binding.
	AuthSCRAM Auth = iota

	// AuthPassword asks for the password in clear text, and only over TLS. It is
	// also the way in which IAM tokens come: see Config.VerifyPassword.
	AuthPassword
)

// Config says where the server is and how clients are treated.
type Config struct {
	// Upstream is the server's URL or keyword/value string as pgconn.ParseConfig
	// reads it: host, port and sslmode count; user, password, database and runtime
	// parameters do not. Required.
	Upstream string

	// Users are the proxy's secrets: the password of each user that may connect, for
	// both sides. Required, and not empty unless VerifyPassword is set.
	Users map[string]string

	// Auth is how clients authenticate. Default: AuthSCRAM.
	Auth Auth

	// VerifyPassword decides, under AuthPassword, whether the password that a client
	// sent is right for the user, instead of a comparison with Users; nil error: it
	// is. With it a test plays IAM and its tokens that expire. It is called by many
	// goroutines, and also for users that are not in Users, whom it cannot let in.
	VerifyPassword func(user, password string) error

	// TLS serves clients that ask for it. Default: they are told that there is none.
	TLS *tls.Config

	// RequireTLS refuses clients without TLS.
	RequireTLS bool

	// PoolSize is the number of server connections for each user and database.
	// Default: 20.
	PoolSize int

	// MaxClients is the number of client connections. Default: 10000.
	MaxClients int

	// BorrowTimeout is how long a client waits for a server connection, which the
	// original calls ConnectionBorrowTimeout. Default: 2 min.
	BorrowTimeout time.Duration

	// IdleClientTimeout is how long a client may be idle outside of a transaction,
	// pinned or not. Default: 30 min.
	IdleClientTimeout time.Duration

	// IdleServerTimeout is how long server connections stay when the last client of
	// their user and database has left. Default: 5 min.
	IdleServerTimeout time.Duration

	// StartupTimeout bounds a client's handshake, without the wait for a server
	// connection. Default: 30 s.
	StartupTimeout time.Duration

	// MessageTimeout bounds the arrival of one message, from its first byte on.
	// Default: 1 min.
	MessageTimeout time.Duration

	// WriteTimeout is how long a client may read nothing of what is sent to it.
	// Default: 1 min.
	WriteTimeout time.Duration

	// MaxMessage is the size of the largest message that a client may send, and of
	// all its prepared statements together, in bytes. Default: 64 MiB.
	MaxMessage int

	// OnFinding is called for each finding as it is made, by many goroutines and
	// before the client has an answer; it must not block. Default: nothing is called.
	OnFinding func(Finding)

	// Log receives what happens. Default: nothing is logged.
	Log *slog.Logger
}

// New returns a proxy. It validates cfg and starts nothing.
func New(cfg Config) (*Proxy, error) {
	if cfg.Upstream == "" {
		return nil, errors.New("rdsproxy: no upstream")
	}
	if len(cfg.Users) == 0 {
		return nil, errors.New("rdsproxy: no users")
	}
	for _, user := range slices.Sorted(maps.Keys(cfg.Users)) {
		if cfg.Users[user] == "" && cfg.VerifyPassword == nil {
			return nil, fmt.Errorf("rdsproxy: the password of user %q is empty", user)
		}
	}
	if (cfg.RequireTLS || cfg.Auth == AuthPassword) && cfg.TLS == nil {
		return nil, errors.New("rdsproxy: TLS is required, but not configured")
	}
	if cfg.VerifyPassword != nil && cfg.Auth != AuthPassword {
		return nil, errors.New("rdsproxy: VerifyPassword needs AuthPassword")
	}
	cfg.PoolSize = cmp.Or(cfg.PoolSize, 20)
	cfg.MaxClients = cmp.Or(cfg.MaxClients, 10000)
	cfg.MaxMessage = cmp.Or(cfg.MaxMessage, 64<<20)
	cfg.BorrowTimeout = cmp.Or(cfg.BorrowTimeout, 2*time.Minute)
	cfg.IdleClientTimeout = cmp.Or(cfg.IdleClientTimeout, 30*time.Minute)
	cfg.IdleServerTimeout = cmp.Or(cfg.IdleServerTimeout, 5*time.Minute)
	cfg.StartupTimeout = cmp.Or(cfg.StartupTimeout, 30*time.Second)
	cfg.MessageTimeout = cmp.Or(cfg.MessageTimeout, time.Minute)
	cfg.WriteTimeout = cmp.Or(cfg.WriteTimeout, time.Minute)
	for _, n := range []int64{
		int64(cfg.PoolSize), int64(cfg.MaxClients), int64(cfg.MaxMessage), int64(cfg.BorrowTimeout),
		int64(cfg.IdleClientTimeout), int64(cfg.StartupTimeout), int64(cfg.MessageTimeout), int64(cfg.WriteTimeout),
		int64(cfg.IdleServerTimeout),
	} {
		if n < 0 {
			return nil, errors.New("rdsproxy: a size or a timeout is negative")
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	upstream, err := pgconn.ParseConfig(cfg.Upstream)
	if err != nil {
		return nil, fmt.Errorf("rdsproxy: upstream: %w", err)
	}
	secrets, err := newSecrets(cfg.Users)
	if err != nil {
		return nil, fmt.Errorf("rdsproxy: %w", err)
	}
	return &Proxy{
		cfg:      cfg,
		upstream: upstream,
		secrets:  secrets,
		pools:    map[poolKey]*pool{},
		conns:    map[net.Conn]struct{}{},
	}, nil
}
