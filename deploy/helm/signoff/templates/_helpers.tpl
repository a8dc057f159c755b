{{- define "signoff.name" -}}
{{- if contains "signoff" .Release.Name }}{{ .Release.Name | trunc 52 | trimSuffix "-" }}{{ else }}{{ printf "%s-signoff" .Release.Name | trunc 52 | trimSuffix "-" }}{{ end }}
{{- end }}

{{- define "signoff.selector" -}}
app.kubernetes.io/name: signoff
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "signoff.labels" -}}
{{ include "signoff.selector" . }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version }}
{{- end }}

{{- define "signoff.secretName" -}}
{{ .Values.secret.existingSecret | default (include "signoff.name" .) }}
{{- end }}

{{/* The keys of the Secret that the chart makes. */}}
{{- define "signoff.secretData" -}}
{{- with .Values.secret }}
SIGNOFF_SECRET_KEY: {{ required "Set secret.secretKey, or name a Secret in secret.existingSecret." .secretKey | quote }}
SIGNOFF_DATABASE_URL: {{ required "Set secret.databaseUrl, or name a Secret in secret.existingSecret." .databaseUrl | quote }}
{{- if $.Values.keda.enabled }}
KEDA_DATABASE_URL: {{ include "signoff.kedaDatabaseUrl" .databaseUrl | quote }}
{{- end }}
{{- with .amqpUrl }}
SIGNOFF_AMQP_URL: {{ . | quote }}
{{- end }}
{{- with .redisUrl }}
SIGNOFF_REDIS_URL: {{ . | quote }}
{{- end }}
{{- with .smtpUrl }}
SIGNOFF_SMTP_URL: {{ . | quote }}
{{- end }}
{{- with .webhookSecret }}
SIGNOFF_WEBHOOK_SECRET: {{ . | quote }}
{{- end }}
{{- with .metricsToken }}
SIGNOFF_METRICS_TOKEN: {{ . | quote }}
{{- end }}
{{- end }}
{{- end }}

{{/* The address of the database without what KEDA's driver, pgx, does not know. */}}
{{- define "signoff.kedaDatabaseUrl" -}}
{{- $parts := splitList "?" . }}
{{- $known := list }}
{{- range rest $parts | join "?" | splitList "&" }}
{{- if regexMatch "^(sslmode|sslrootcert|connect_timeout|target_session_attrs|host|port)=" . }}{{ $known = append $known . }}{{ end }}
{{- end }}
{{- regexReplaceAll "^[^:]+" (first $parts) "postgresql" }}{{ with $known }}?{{ join "&" . }}{{ end }}
{{- end }}

{{/* What the pods of the API, the workers and the migration have in common. */}}
{{- define "signoff.pod" -}}
automountServiceAccountToken: false
enableServiceLinks: false
{{- with .Values.imagePullSecrets }}
imagePullSecrets: {{- toYaml . | nindent 2 }}
{{- end }}
securityContext:
  runAsNonRoot: true
  runAsUser: 10001
  runAsGroup: 10001
  fsGroup: 10001
  seccompProfile: {type: RuntimeDefault}
volumes:
  - name: data
    emptyDir: {}
  - name: tmp
    emptyDir: {}
{{- end }}

{{/* The migration has no account of its own: it runs before those of the release are made, and needs no bucket. */}}
{{- define "signoff.serviceAccountName" -}}
{{- .Values.serviceAccount.name | default (ternary (include "signoff.name" .) "" .Values.serviceAccount.create) }}
{{- end }}

{{- define "signoff.container" -}}
image: {{ printf "%s:%s" .Values.image.repository .Values.image.tag | quote }}
imagePullPolicy: {{ .Values.image.pullPolicy }}
securityContext:
  allowPrivilegeEscalation: false
  readOnlyRootFilesystem: true
  capabilities: {drop: [ALL]}
volumeMounts:
  - name: data
    mountPath: /var/lib/signoff
  - name: tmp
    mountPath: /tmp
{{- end }}

{{- define "signoff.environment" -}}
env:
  - name: SIGNOFF_DRAIN_SECONDS
    value: {{ .Values.drainSeconds | quote }}
  {{- with .Values.blobUrl }}
  - name: SIGNOFF_BLOB_URL
    value: {{ . | quote }}
  {{- end }}
  {{- range $name, $value := .Values.settings }}
  - name: {{ printf "SIGNOFF_%s" (upper $name) }}
    value: {{ if kindIs "string" $value }}{{ $value | quote }}{{ else }}{{ $value | toJson | quote }}{{ end }}
  {{- end }}
  {{- with .Values.extraEnv }}
  {{- toYaml . | nindent 2 }}
  {{- end }}
{{- end }}

{{- define "signoff.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
