-- The roles and the database, made when the server's data directory is. Run by psql, as the
-- superuser; the passwords are the container's secrets.
\set ON_ERROR_STOP on
\set pith_password `cat /run/secrets/pith_password`
\set pith_migrate_password `cat /run/secrets/pith_migrate_password`

-- pith runs, pith_migrate owns: what runs cannot change the schema.
CREATE ROLE pith LOGIN PASSWORD :'pith_password';
CREATE ROLE pith_migrate LOGIN PASSWORD :'pith_migrate_password';

-- Limits belong to the role: behind a pooler a session's SET is somebody else's, too.
ALTER ROLE pith SET statement_timeout = '60s';
ALTER ROLE pith SET idle_in_transaction_session_timeout = '30s';

CREATE DATABASE pith OWNER pith_migrate;
REVOKE ALL ON DATABASE pith FROM PUBLIC;
GRANT CONNECT ON DATABASE pith TO pith;

\connect pith
ALTER DEFAULT PRIVILEGES FOR ROLE pith_migrate GRANT SELECT, INSERT, UPDATE, DELETE ON TABLES TO pith;
