package api

import (
	"context"
	"encoding/json"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	appstatus "github.com/pithworks/pith/app_status"
	"github.com/pithworks/pith/db"
)

type statusReply struct {
	Versions           []versionReply          `json:"versions"`
	OnlineWorkers      []appStatusReply        `json:"online_workers"`
	OnlineAPIApps      []appStatusReply        `json:"online_api_apps"`
	OnlineContentApps  []appStatusReply        `json:"online_content_apps"`
	DatabaseConnection databaseConnectionReply `json:"database_connection"`
	RedisConnection    redisConnectionReply    `json:"redis_connection" doc:"Pith needs none: always false."`
	Storage            storageReply            `json:"storage"`
	ContentSettings    contentSettingsReply    `json:"content_settings"`
	DomainEnabled      bool                    `json:"domain_enabled"`
}

type versionReply struct {
	Component        string `json:"component"`
	Version          string `json:"version"`
	Package          string `json:"package"`
	Module           string `json:"module"`
	DomainCompatible bool   `json:"domain_compatible"`
}

type appStatusReply struct {
	Name          string            `json:"name"`
	LastHeartbeat Time              `json:"last_heartbeat"`
	Versions      map[string]string `json:"versions"`
}

type databaseConnectionReply struct {
	Connected bool `json:"connected"`
}

type redisConnectionReply struct {
	Connected bool `json:"connected"`
}

type storageReply struct {
	Total *int64 `json:"total"`
	Used  int64  `json:"used"`
	Free  *int64 `json:"free"`
}

type contentSettingsReply struct {
	ContentOrigin     *string `json:"content_origin"`
	ContentPathPrefix string  `json:"content_path_prefix"`
}

// statusFor is how long the list of processes is kept: anyone may ask for it, without credentials.
const statusFor = time.Second

// statusTimeout bounds how long a database that is away delays the answer.
const statusTimeout = 5 * time.Second

// statusCache keeps what status tells of the processes. Who asks while another does waits for that one.
type statusCache struct {
	now   func() time.Time // the clock
	mu    sync.Mutex
	until time.Time
	apps  map[appstatus.Type][]appStatusReply
	err   error
}

// online are the processes that are online, by type.
func (s *Server) online(ctx context.Context) (map[appstatus.Type][]appStatusReply, error) {
	c := &s.status
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now().Before(c.until) {
		return c.apps, c.err
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), statusTimeout)
	defer cancel()
	rows, err := query(ctx, func(ctx context.Context) ([]db.AppStatusOnlineRow, error) { return s.q.AppStatusOnline(ctx, s.db) })
	c.apps = map[appstatus.Type][]appStatusReply{}
	for _, row := range rows {
		app := appStatusReply{Name: row.Name, LastHeartbeat: Time{row.LastHeartbeat.Time}}
		if err == nil {
			err = json.Unmarshal(row.Versions, &app.Versions)
		}
		c.apps[appstatus.Type(row.AppType)] = append(c.apps[appstatus.Type(row.AppType)], app)
	}
	c.err, c.until = err, c.now().Add(statusFor)
	return c.apps, c.err
}

// readStatus tells also that the database is away: that is what status is for.
func (s *Server) readStatus(ctx context.Context, _ *Request) (Reply, error) {
	apps, err := s.online(ctx)
	if err != nil {
		s.cfg.Log.Error("status cannot read the processes", "err", err)
	}
	reply := statusReply{
		OnlineWorkers: some(apps[appstatus.Worker]), OnlineAPIApps: some(apps[appstatus.API]), OnlineContentApps: some(apps[appstatus.Content]),
		DatabaseConnection: databaseConnectionReply{err == nil},
		ContentSettings:    contentSettingsReply{ContentPathPrefix: s.cfg.ContentPathPrefix},
	}
	if s.cfg.ContentOrigin != "" {
		reply.ContentSettings.ContentOrigin = &s.cfg.ContentOrigin
	}
	for _, c := range s.cfg.Components {
		reply.Versions = append(reply.Versions, versionReply{c.Label, s.version(c), c.Package, c.Module, false})
	}
	return OK(reply)
}

// some is a list that is not null.
func some[T any](list []T) []T {
	if list == nil {
		return []T{}
	}
	return list
}

// statusResource tells how the installation is.
func (s *Server) statusResource() *Resource {
	return &Resource{
		Path: "status/", Name: "status", Key: "status", Tag: "Status",
		Operations: []Operation{{
			Method: http.MethodGet, Verb: "read", Summary: "Tell the versions, and which processes are online.", Public: true,
			Replies: map[int]any{http.StatusOK: statusReply{}}, Do: Bare(s.readStatus),
		}},
	}
}

// livezResource tells that this process answers.
func (s *Server) livezResource() *Resource {
	return &Resource{
		Path: "livez/", Name: "livez", Key: "livez", Tag: "Livez",
		Operations: []Operation{{
			Method: http.MethodGet, Verb: "read", Summary: "Tell that this process answers. The database is not asked.", Public: true,
			Replies: map[int]any{http.StatusOK: nil},
			Do:      Bare(func(context.Context, *Request) (Reply, error) { return Reply{Status: http.StatusOK}, nil }),
		}},
	}
}

// lists reports whether the operation reads the collection itself.
func (o Operation) lists() bool { return o.Method == http.MethodGet && o.Path == "" }

// rootResource lists the collections.
func (s *Server) rootResource() *Resource {
	return &Resource{
		Name: "root", Key: "root", Tag: "Root",
		Operations: []Operation{{
			Method: http.MethodGet, Verb: "read", Summary: "List the collections by name, with their addresses.", Public: true,
			Replies: map[int]any{http.StatusOK: map[string]string{}},
			Do: Bare(func(_ context.Context, r *Request) (Reply, error) {
				all := map[string]string{}
				for _, res := range s.resources() {
					if res.Parent == nil && res.Base == "" && res.Path != "" && slices.ContainsFunc(res.Operations, Operation.lists) {
						all[strings.TrimSuffix(res.Path, "/")] = r.base() + s.root + res.Path
					}
				}
				return OK(all)
			}),
		}},
	}
}

// artifactsResource has no artifacts yet: tasks make none. Pulp's command line reads hrefs of any type by the operation that
// reads an artifact.
func (s *Server) artifactsResource() *Resource {
	return &Resource{
		Path: "artifacts/", Name: "artifacts", Key: "artifact", Model: "core.artifact", Noun: "Artifact", Tag: "Artifacts",
		Existing: func(context.Context, []string) ([]string, error) { return nil, nil },
		Operations: []Operation{
			read("Read an artifact.", artifactReply{}, func(context.Context, *Request) (Reply, error) { return Reply{}, NotFound("Artifact") }),
		},
	}
}

type artifactReply struct {
	head
	File string `json:"file"`
	Size int64  `json:"size"`
}
