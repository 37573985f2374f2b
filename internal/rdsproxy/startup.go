package rdsproxy

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"time"

	"github.com/jackc/pgx/v5/pgproto3"
)

const (
	// maxStartup is PostgreSQL's own limit for a startup packet, in bytes.
	maxStartup = 10000

	sslCode    = 80877103
	gssCode    = 80877104
	cancelCode = 80877102
)

// A fatalError is why a client is closed, in the words that it is told.
type fatalError struct{ response pgproto3.ErrorResponse }

func (e *fatalError) Error() string {
	return fmt.Sprintf("%s (SQLSTATE %s)", e.response.Message, e.response.Code)
}

// fatal returns an error that closes the client.
func fatal(code, message, detail, hint string) *fatalError {
	return &fatalError{pgproto3.ErrorResponse{
		Severity:            "FATAL",
		SeverityUnlocalized: "FATAL",
		Code:                code,
		Message:             message,
		Detail:              detail,
		Hint:                hint,
	}}
}

func protocolError(message string) *fatalError { return fatal("08P01", message, "", "") }

// errSilent closes the client without a word.
var errSilent = errors.New("closed without an answer")

// handle serves one client from its first byte to its last.
func (p *Proxy) handle(ctx context.Context, conn net.Conn) {
	if !p.register(conn) {
		return
	}
	defer p.unregister(conn)
	c := &p.counters
	c.clientsReceived.Add(1)
	now := c.clients.Add(1)
	defer func() {
		c.clients.Add(-1)
		c.clientsClosed.Add(1)
		p.signal()
	}()
	s := &session{p: p, conn: conn, view: map[string]*stmt{}}
	s.in = &frameReader{r: conn, start: clientBuffer, keep: clientKeep, limit: maxAuthMessage}
	err := s.start(ctx, int(now))
	if err == nil {
		err = s.run(ctx)
	}
	s.end(err)
	if err != nil && ctx.Err() == nil {
		p.cfg.Log.DebugContext(ctx, "client closed", "user", s.user, "database", s.database, "err", err)
	}
}

// start brings a client to the point where it may send queries.
func (s *session) start(ctx context.Context, clients int) error {
	deadline := time.Now().Add(s.p.cfg.StartupTimeout)
	_ = s.conn.SetDeadline(deadline)
	m, err := s.startupMessage(ctx)
	if err != nil {
		return err
	}
	c := &s.p.counters
	if s.tls {
		c.clientsTLS.Add(1)
	} else {
		c.clientsNoTLS.Add(1)
	}
	if err := s.parameters(m); err != nil {
		return err
	}
	if clients > s.p.cfg.MaxClients {
		return fatal("53300", "sorry, too many clients already", "", "")
	}
	if !s.tls && (s.p.cfg.RequireTLS || s.p.cfg.Auth == AuthPassword) {
		return fatal("28000", "this proxy requires TLS", "", "Connect with sslmode=require or a stronger one.")
	}
	if err := s.authenticate(); err != nil {
		if errors.Is(err, errAuth) {
			c.clientsFailedAuth.Add(1)
			return fatal("28P01", fmt.Sprintf("password authentication failed for user %q", s.user), "", "")
		}
		return err
	}
	s.pool = s.p.enter(poolKey{s.user, s.database})
	// The wait for a server connection has its own limit.
	_ = s.conn.SetDeadline(time.Time{})
	params := s.pool.reported()
	if params == nil {
		sc, err := s.queue(ctx)
		if err != nil {
			return err
		}
		params = sc.params
		s.pool.put(sc)
	}
	var key [8]byte
	_, _ = rand.Read(key[:]) // never fails
	answers := []pgproto3.BackendMessage{&pgproto3.AuthenticationOk{}}
	for _, name := range slices.Sorted(maps.Keys(params)) {
		answers = append(answers, &pgproto3.ParameterStatus{Name: name, Value: params[name]})
	}
	answers = append(answers,
		// Not of use: cancel requests are not served.
		&pgproto3.BackendKeyData{ProcessID: binary.BigEndian.Uint32(key[:]) >> 1, SecretKey: key[4:]},
		&pgproto3.ReadyForQuery{TxStatus: 'I'})
	if err := s.reply(answers...); err != nil {
		return err
	}
	c.clientsSucceeded.Add(1)
	s.in.limit = s.p.cfg.MaxMessage
	return nil
}

// startupMessage answers what comes before the startup message, which it returns.
func (s *session) startupMessage(ctx context.Context) (*pgproto3.StartupMessage, error) {
	asked := map[uint32]bool{}
	for {
		// Nothing may be read ahead: TLS begins with the byte after.
		packet, err := readStartup(s.conn)
		if err != nil {
			return nil, err
		}
		code := binary.BigEndian.Uint32(packet)
		if asked[code] || (s.tls && (code == sslCode || code == gssCode)) {
			return nil, protocolError("encryption was negotiated already")
		}
		asked[code] = true
		switch {
		case code == sslCode && s.p.cfg.TLS != nil:
			if _, err := s.conn.Write([]byte{'S'}); err != nil {
				return nil, err
			}
			conn := tls.Server(s.conn, s.p.cfg.TLS)
			if err := conn.HandshakeContext(ctx); err != nil {
				return nil, errors.Join(errSilent, err)
			}
			s.conn, s.in.r, s.tls = conn, conn, true
		case code == sslCode || code == gssCode:
			if _, err := s.conn.Write([]byte{'N'}); err != nil {
				return nil, err
			}
		case code == cancelCode:
			return nil, errSilent
		case code>>16 == 3:
			return s.negotiate(packet)
		default:
			return nil, fatal("0A000", fmt.Sprintf("unsupported frontend protocol %d.%d: server supports 3.0 to 3.0", code>>16, code&0xffff), "", "")
		}
	}
}

// readStartup reads a packet that has a length and no type.
func readStartup(r io.Reader) ([]byte, error) {
	var head [4]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return nil, err
	}
	n := int(int32(binary.BigEndian.Uint32(head[:]))) - len(head)
	if n < 4 || n > maxStartup {
		return nil, protocolError("invalid length of startup packet")
	}
	packet := make([]byte, n)
	if _, err := io.ReadFull(r, packet); err != nil {
		return nil, err
	}
	return packet, nil
}

// negotiate decodes the startup message. A client that wants more than protocol
// 3.0 is told what there is.
func (s *session) negotiate(packet []byte) (*pgproto3.StartupMessage, error) {
	minor := binary.BigEndian.Uint32(packet) & 0xffff
	binary.BigEndian.PutUint32(packet, pgproto3.ProtocolVersion30)
	m := &pgproto3.StartupMessage{}
	if err := m.Decode(packet); err != nil {
		return nil, protocolError("invalid startup packet layout")
	}
	answer := &pgproto3.NegotiateProtocolVersion{NewestMinorProtocol: pgproto3.ProtocolVersion30}
	for _, name := range slices.Sorted(maps.Keys(m.Parameters)) {
		if strings.HasPrefix(name, "_pq_.") {
			answer.UnrecognizedOptions = append(answer.UnrecognizedOptions, name)
			delete(m.Parameters, name)
		}
	}
	if minor > 0 || len(answer.UnrecognizedOptions) > 0 {
		if err := s.reply(answer); err != nil {
			return nil, err
		}
	}
	return m, nil
}

// parameters takes user and database, and refuses what the proxy cannot keep.
func (s *session) parameters(m *pgproto3.StartupMessage) error {
	s.user = m.Parameters["user"]
	s.database = m.Parameters["database"]
	if s.user == "" {
		return fatal("28000", "no PostgreSQL user name specified in startup packet", "", "")
	}
	if s.database == "" {
		s.database = s.user
	}
	for _, name := range slices.Sorted(maps.Keys(m.Parameters)) {
		value := m.Parameters[name]
		switch name {
		case "user", "database", "application_name":
		case "client_encoding":
			switch strings.ToLower(strings.Trim(value, `'"`)) {
			case "utf8", "utf-8", "unicode":
			default:
				return fatal("0A000", fmt.Sprintf("the proxy does not support client_encoding %q", value), "", "Use UTF8.")
			}
		case "replication":
			return fatal("0A000", `the proxy does not support the startup parameter "replication"`, "", "Connect to the server itself.")
		default:
			return fatal("0A000", fmt.Sprintf("the proxy does not support the startup parameter %q", name), "",
				"Set what you need for the role: ALTER ROLE ... SET ....")
		}
	}
	return nil
}
