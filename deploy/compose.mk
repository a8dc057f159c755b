# The containers of deploy/compose.yaml. `make up` needs nothing but Docker; its secrets are in deploy/.env.
COMPOSE = docker compose --env-file deploy/.env -f deploy/compose.yaml
BACKUPS := backups
# Runs a shell command in a new container with the network and the files of the services.
ONE_OFF = $(COMPOSE) run --rm --no-deps -T --entrypoint sh migrate -c

.PHONY: up down build restart logs migrate create-admin backup restore shell

# nginx starts when the servers are ready, and the command ends when nginx has started.
up: .docker deploy/.env ## Starts the containers of deploy/compose.yaml, on http://localhost:8080.
	$(COMPOSE) up --detach --build

down: .docker ## Stops and removes the containers; the data stays.
	$(COMPOSE) down

build: .docker deploy/.env ## Builds the image.
	$(COMPOSE) build

# One server after the other: nginx sends requests to the one that listens.
restart: .docker ## Restarts servers and workers; no request is lost.
	$(COMPOSE) up --detach --no-deps --wait --force-recreate api-1
	$(COMPOSE) up --detach --no-deps --wait --force-recreate api-2
	$(COMPOSE) up --detach --no-deps --force-recreate worker

logs: .docker ## Follows the logs of the containers.
	$(COMPOSE) logs --follow --tail 100

migrate: .docker deploy/.env ## Brings the schema of the database up to date.
	$(COMPOSE) run --rm -T migrate

create-admin: .docker ## Makes the admin EMAIL, and prints a link to sign in: make create-admin email=you@example.com.
	@test -n "$(email)" || { echo "Name the admin: make create-admin email=you@example.com" >&2; exit 1; }
	$(COMPOSE) exec -T api-1 signoff user create "$(email)" --role admin
	@$(COMPOSE) exec -T api-1 signoff user link "$(email)"

backup: .docker ## Writes all data into a file in backups/, while the servers run.
	@mkdir -p $(BACKUPS)
	@file=$(BACKUPS)/$$(date -u +%Y-%m-%dT%H%M%SZ).signoff; umask 077; \
	$(ONE_OFF) 'f=$$(mktemp -d -p /srv/signoff)/backup && signoff backup "$$f" >&2 && cat "$$f"; s=$$?; rm -r "$${f%/*}"; exit $$s' \
		>"$$file.part" && mv "$$file.part" "$$file" || { s=$$?; rm -f "$$file.part"; exit $$s; }; \
	echo "$$file was written. Keep deploy/.env as well: it has the key."

restore: .docker deploy/.env ## Fills the empty database from a backup: make down, remove the volumes, make restore file=backups/….
	@test -f "$(file)" || { echo "Name a backup: make restore file=backups/…" >&2; exit 1; }
	$(COMPOSE) up --detach --wait postgres
	$(ONE_OFF) 'f=$$(mktemp -d -p /srv/signoff)/backup && cat >"$$f" && signoff restore "$$f"; s=$$?; rm -r "$${f%/*}"; exit $$s' \
		<"$(file)"
	$(COMPOSE) up --detach --build

shell: .docker ## Opens a shell in a server's container, where the command signoff works.
	$(COMPOSE) exec api-1 sh

.PHONY: .docker
.docker:
	@command -v docker >/dev/null || { echo "Docker is missing: see docs/how-to/deploy.md, which also has a way without." >&2; exit 1; }
	@docker compose version >/dev/null 2>&1 || { echo "Docker's plug-in compose is missing (docker-compose-plugin)." >&2; exit 1; }
	@docker info >/dev/null 2>&1 || { echo "Docker does not run, or you may not use it: docker info says why." >&2; exit 1; }

# Passwords are hexadecimal, because they are parts of URLs.
deploy/.env:
	@umask 077; $(PYTHON) -c 'import base64, os, secrets; \
	print("# Secrets of deploy/compose.yaml. Keep a copy: without the key, stored secrets cannot be read."); \
	print("POSTGRES_PASSWORD=%s" % secrets.token_hex(24)); \
	print("RABBITMQ_PASSWORD=%s" % secrets.token_hex(24)); \
	print("REDIS_PASSWORD=%s" % secrets.token_hex(24)); \
	print("SIGNOFF_SECRET_KEY=%s" % base64.urlsafe_b64encode(os.urandom(32)).decode())' >$@.part && mv $@.part $@
	@echo "Made $@ with new secrets."
