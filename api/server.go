package api

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"sync/atomic"
	"time"

	"github.com/jackc/pgx/v5/pgxpool"
	"go.opentelemetry.io/otel/metric"
	"golang.org/x/sync/errgroup"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
	"github.com/pithworks/pith/internal/resend"
	"github.com/pithworks/pith/tasking"
)

// Config configures a Server.
type Config struct {
	// Components beside the core's own, whose place is first. Default: none.
	Components []Component
	// Root is the path below which everything is served. It begins and ends with a slash, and needs no escaping. Default: /pulp/.
	Root string
	// ContentOrigin and ContentPathPrefix are where the content app serves files, as told in status. Default: no origin,
	// and /pulp/content/.
	ContentOrigin, ContentPathPrefix string
	// NameTemplate and TTL of the app status: see appstatus.Config.
	NameTemplate string
	TTL          time.Duration
	// TrustProxy takes the scheme of links from X-Forwarded-Proto: only behind a proxy that sets it. Default: false.
	TrustProxy bool
	// Version of the core, PEP 440. Required.
	Version string
	// Meter gets Pulp's histogram api.request_duration, in milliseconds, with the attributes http.method, http.status_code
	// (2xx), http.target (the route; empty for errors above 400) and worker.name. Default: none.
	Meter metric.Meter
	// Log gets what goes wrong. Default: none.
	Log *slog.Logger
}

// limits of a connection. A client that is slower than that is cut off; it holds nothing but its own connection.
const (
	headerTimeout = 10 * time.Second
	readTimeout   = 60 * time.Second
	writeTimeout  = 120 * time.Second
	idleTimeout   = 120 * time.Second
	maxHeader     = 64 << 10
	// shutdownTimeout is how long requests may go on once the server is to end.
	shutdownTimeout = 30 * time.Second
)

// Server is a process of the API.
type Server struct {
	cfg   Config
	db    *pgxpool.Pool
	q     *db.Queries
	root  string // with api/v3/
	users *users
	// newClient makes a client whose immediate tasks run under an app status.
	newClient func(*appstatus.App) (*tasking.Client, error)
	client    atomic.Pointer[tasking.Client]
	handler   http.Handler
	status    statusCache
	own       own
	document  document
	roles     []Role // of all components
	durations *durations
	// secret signs links; nil: not read yet.
	secret atomic.Pointer[[]byte]
}

// New makes a server; it sends nothing and starts nothing. newClient makes a client of the tasking system whose immediate
// tasks run under an app status; with nil it makes one that leaves them to workers.
func New(pool *pgxpool.Pool, newClient func(*appstatus.App) (*tasking.Client, error), cfg Config) (*Server, error) {
	switch {
	case pool == nil || newClient == nil:
		return nil, errors.New("api: a pool and a maker of clients are required")
	case cfg.Version == "":
		return nil, errors.New("api: Config.Version is required")
	}
	cfg.Root = cmp.Or(cfg.Root, "/pulp/")
	cfg.ContentPathPrefix = cmp.Or(cfg.ContentPathPrefix, "/pulp/content/")
	if err := cmp.Or(basePaths.check("Root", cfg.Root), basePaths.check("ContentPathPrefix", cfg.ContentPathPrefix)); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	s := &Server{cfg: cfg, db: pool, q: db.New(), root: cfg.Root + "api/v3/", users: newUsers(pool), newClient: newClient}
	s.status.now = time.Now
	s.document.kept, s.document.others = make(chan struct{}, 1), make(chan struct{}, 1)
	s.roles = slices.Clone(coreRoles)
	for _, c := range cfg.Components {
		s.roles = append(s.roles, c.Roles...)
	}
	s.cfg.Components = append([]Component{s.core()}, cfg.Components...)
	client, err := newClient(nil)
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	s.client.Store(client)
	if err := s.check(); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	app, err := s.newApp() // for its errors, and its name
	if err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	if s.durations, err = newDurations(cfg.Meter, app.Name()); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	mux, err := s.routes()
	if err != nil {
		return nil, err
	}
	if s.document.digest, err = s.digest(); err != nil {
		return nil, fmt.Errorf("api: %w", err)
	}
	s.handler = withCorrelationID(s.observed(sameOrigin(mux)))
	return s, nil
}

// Handler answers requests. Immediate tasks run in this process only while Run does.
func (s *Server) Handler() http.Handler { return s.handler }

// Tasks is the client of the tasking system. Each call may answer another one.
func (s *Server) Tasks() *tasking.Client { return s.client.Load() }

// resources are all that are served.
func (s *Server) resources() []*Resource {
	var all []*Resource
	for _, c := range s.cfg.Components {
		all = append(all, c.Resources...)
	}
	return all
}

// httpServer answers requests of clients that keep within the limits.
func (s *Server) httpServer() *http.Server {
	return &http.Server{
		Handler: s.handler, ReadHeaderTimeout: headerTimeout, ReadTimeout: readTimeout, WriteTimeout: writeTimeout,
		IdleTimeout: idleTimeout, MaxHeaderBytes: maxHeader, ErrorLog: slog.NewLogLogger(s.cfg.Log.Handler(), slog.LevelWarn),
	}
}

// Run serves on a listener until ctx ends, and then lets the requests end that are under way. Meanwhile the process is
// registered as an app of the type api. If its lease is lost, it goes on under a new one.
func (s *Server) Run(ctx context.Context, listener net.Listener) error {
	srv := s.httpServer()
	// The lease outlasts the requests: what they run is under it.
	leased, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	parts, ctx := errgroup.WithContext(ctx)
	parts.Go(func() error { return s.beLeased(ctx, leased) })
	parts.Go(func() error {
		if err := srv.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
			return fmt.Errorf("serve: %w", err)
		}
		return nil
	})
	parts.Go(func() error {
		<-ctx.Done()
		defer release()
		ending, cancel := context.WithTimeout(context.WithoutCancel(ctx), shutdownTimeout)
		defer cancel()
		if err := srv.Shutdown(ending); err != nil {
			s.cfg.Log.Warn("requests were cut off", "after", shutdownTimeout)
			return srv.Close()
		}
		return nil
	})
	return parts.Wait()
}

// beLeased keeps the process registered until leased ends; no new registration is begun after ctx has.
func (s *Server) beLeased(ctx, leased context.Context) error {
	for n := 0; n == 0 || resend.Sleep(ctx, resend.Backoff(n)) == nil; n++ {
		err := s.lease(ctx, leased)
		if !errors.Is(err, appstatus.ErrLost) {
			return err
		}
		s.cfg.Log.Warn("app status lost; registering anew", "err", err)
	}
	return nil
}

// newApp makes an identity of the process.
func (s *Server) newApp() (*appstatus.App, error) {
	versions := map[string]string{}
	for _, c := range s.cfg.Components {
		versions[c.Label] = c.Version
	}
	return appstatus.New(s.db, appstatus.Config{
		Type: appstatus.API, NameTemplate: s.cfg.NameTemplate, TTL: s.cfg.TTL, Versions: versions, Log: s.cfg.Log,
	})
}

// lease registers the process, and runs what is immediate under that registration until it is lost or leased ends.
func (s *Server) lease(ctx, leased context.Context) (err error) {
	app, err := s.newApp()
	if err != nil {
		return err
	}
	client, err := s.newClient(app)
	if err != nil {
		return err
	}
	if err := app.Register(ctx); err != nil {
		if ctx.Err() != nil {
			return nil //nolint:nilerr // it is to end
		}
		return err
	}
	s.cfg.Log.Info("api is online", "name", app.Name(), "app", app.ID())
	before := s.client.Swap(client)
	err = app.Run(leased)
	s.client.Store(before)
	if gone := app.Unregister(context.WithoutCancel(ctx)); err == nil {
		err = gone
	}
	return err
}
