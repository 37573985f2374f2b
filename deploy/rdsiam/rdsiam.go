// Package rdsiam makes the tokens with which IAM authentication lets a client into Amazon RDS and RDS
// Proxy. It is a module of its own, so that the AWS SDK reaches only programs that ask for it.
//
// A token is a signed URL. Nothing is sent to make one, except what the SDK does to find credentials,
// and nobody checks it before the database or the proxy does.
package rdsiam

import (
	"context"
	"errors"
	"fmt"
	"net"
	"strconv"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/feature/rds/auth"

	"github.com/pithworks/pith/pool"
)

// Lifetime is how long a token is good for, by the time of its signature.
//
// Source: "Connecting to your DB instance using IAM authentication", Amazon RDS User Guide.
const Lifetime = 15 * time.Minute

// Source signs with the credentials and for the region of a configuration, such as the one of
// config.LoadDefaultConfig. Without a region there it takes the one in the endpoint's name.
//
// The host of the database URL must be the endpoint itself: the name is part of what is signed.
func Source(cfg aws.Config) pool.TokenSource {
	return func(ctx context.Context, to pool.Endpoint) (string, time.Time, error) {
		region := cfg.Region
		if region == "" {
			region = Region(to.Host)
		}
		switch {
		case to.Host == "" || to.Port == 0 || to.User == "":
			return "", time.Time{}, fmt.Errorf("sign for %s: host, port and user are needed", to)
		case region == "":
			return "", time.Time{}, fmt.Errorf("sign for %s: no region: set AWS_REGION", to)
		case cfg.Credentials == nil:
			return "", time.Time{}, errors.New("no AWS credentials are configured")
		}
		// Credentials may end before their tokens would.
		credentials, err := cfg.Credentials.Retrieve(ctx)
		if err != nil {
			return "", time.Time{}, fmt.Errorf("find AWS credentials: %w", err)
		}
		signed := time.Now()
		address := net.JoinHostPort(to.Host, strconv.Itoa(int(to.Port)))
		token, err := auth.BuildAuthToken(ctx, address, region, to.User, fixed(credentials))
		if err != nil {
			return "", time.Time{}, fmt.Errorf("sign for %s: %w", to, err)
		}
		expires := signed.Add(Lifetime)
		if credentials.CanExpire && credentials.Expires.Before(expires) {
			expires = credentials.Expires
		}
		return token, expires, nil
	}
}

// fixed provides the same credentials again.
type fixed aws.Credentials

// Retrieve returns them.
func (f fixed) Retrieve(context.Context) (aws.Credentials, error) { return aws.Credentials(f), nil }

// Region reads the region from an endpoint's name, such as name.proxy-abc.eu-central-1.rds.amazonaws.com,
// or, in China, name.abc.rds.cn-north-1.amazonaws.com.cn. It is empty for names of another form.
func Region(host string) string {
	labels := strings.Split(strings.TrimSuffix(host, "."), ".")
	for i := 1; i+2 < len(labels); i++ {
		switch {
		case labels[i+2] != "amazonaws":
		case labels[i+1] == "rds":
			return labels[i]
		case labels[i] == "rds":
			return labels[i+1]
		}
	}
	return ""
}
